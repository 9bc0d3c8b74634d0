"""The old path of `normscope.core.spec`, kept for one version."""

from normscope.core.spec import *  # noqa: F403
