"""The old path of `normscope.probing.tracker`, kept for one version."""

from normscope.probing.tracker import *  # noqa: F403
