"""Race: variants of a network trained side by side on the same batches, and what the difference is worth."""

from normscope.racing._contest import race
from normscope.racing._inputs import Plan, Variant
from normscope.racing._progress import Bar, Interrupted, Watcher
from normscope.racing._result import Race

__all__ = ["Bar", "Interrupted", "Plan", "Race", "Variant", "Watcher", "race"]
