"""The old path of `normscope.geometry.statistic`, kept for one version."""

from normscope.geometry.statistic import *  # noqa: F403
