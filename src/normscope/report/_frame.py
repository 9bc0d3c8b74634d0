"""The frame of a page: templates, the chart library as one script, the policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from normscope.core.extra import needs_extra

with needs_extra():
    import altair  # noqa: F401  (the charts)
    import jinja2
    import vl_convert

from markupsafe import Markup, escape


def policy(scripts: Sequence[str]) -> str:
    """Content-Security-Policy: nothing from the network, no script but ours (by its hash), whatever a name contains."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    # Vega compiles expressions with Function(), hence unsafe-eval; only the scripts above can call it.
    return f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (about 0.9 MB)."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


@cache
def environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template),
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
def template(name: str) -> str:
    return (resources.files("normscope.report") / "templates" / name).read_text("utf-8")
