"""The old path of `normscope.data.models`, kept for one version."""

from normscope.data.models import *  # noqa: F403
