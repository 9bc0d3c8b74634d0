"""The old path of `normscope.geometry.metrics`, kept for one version."""

from normscope.geometry.metrics import *  # noqa: F403
