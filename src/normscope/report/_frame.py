"""The frame of a page: templates, the chart library as one script, the policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from normscope.core.extra import needs_extra
from normscope.core.files import put

with needs_extra():
    import jinja2
    import vl_convert

    if find_spec("altair") is None:  # not imported: it takes half a second, and a page has no need of it
        raise ImportError("No module named 'altair'")

from markupsafe import Markup, escape


def policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: nothing from the network, no script but ours (by its hash), whatever a name contains."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    # Vega compiles expressions with Function(), hence unsafe-eval; only the scripts above can call it.
    return f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script (0.9 MB), made once a version and kept: it takes over two
    seconds.
    """
    kept = _kept()
    with suppress(OSError, UnicodeDecodeError):
        if kept is not None and (text := kept.read_text("utf-8")).endswith(_END):
            return Markup(text)
    text = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script") + _END
    if kept is not None:
        with suppress(OSError):  # what cannot be kept is made again
            kept.parent.mkdir(parents=True, exist_ok=True)
            put(text.encode(), kept, durable=False)
    return Markup(text)


#: End of a script that is whole.
_END = "\n// whole\n"


def _kept() -> Path | None:
    """Where the script is kept: in the user's folder for what can be made again; ``None`` for a user without one."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "normscope" / f"vega-{version('vl-convert-python')}.js"


@cache
def environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: str(template(name))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    return environment


def _prose(text: str) -> Markup:
    """Text with `code` between backticks; everything else is escaped."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:  # a lone backtick is a backtick
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


@cache
def template(name: str) -> Markup:
    """A file of the templates, ours and so not escaped."""
    return Markup((resources.files("normscope.report") / "templates" / name).read_text("utf-8"))
