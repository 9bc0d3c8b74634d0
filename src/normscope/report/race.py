"""The HTML face of a race."""

from normscope.report._files import write
from normscope.report._race_content import RaceContent

__all__ = ["RaceContent", "write"]
