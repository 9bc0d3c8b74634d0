"""The old path of `normscope.probing.writers`, kept for one version."""

from normscope.probing.writers import *  # noqa: F403
