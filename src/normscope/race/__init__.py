"""Race: variants of a network trained side by side on the same batches, and what the difference is worth."""

from normscope.race._contest import race
from normscope.race._inputs import Plan, Variant
from normscope.race._progress import Bar, Interrupted, Watcher
from normscope.race._result import Race

__all__ = ["Bar", "Interrupted", "Plan", "Race", "Variant", "Watcher", "race"]
