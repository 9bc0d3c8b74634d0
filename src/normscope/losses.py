"""The old path of `normscope.call.losses`, kept for one version."""

from normscope.call.losses import *  # noqa: F403
