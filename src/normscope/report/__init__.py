"""Reports: a diagnosis as an HTML page, a notebook cell or terminal text. Reads tables only, never models."""

from __future__ import annotations

from normscope.report._content import Content

__all__ = ["Content"]
