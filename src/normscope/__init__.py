"""normscope."""
