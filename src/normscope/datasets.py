"""The old path of `normscope.data.datasets`, kept for one version."""

from normscope.data.datasets import *  # noqa: F403
