"""What mkdocs is told beyond mkdocs.yml: pages that lie outside of docs/, and formulas as MathML, without a script."""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
#: Page of the site -> file of the checkout.
OUTSIDE = {
    "index.md": "README.md",
    "CITATION.cff": "CITATION.cff",
    **{f"results/{p.name}": f"results/{p.name}" for p in ROOT.glob("results/*.md")},
}
PAGES = {source: page for page, source in OUTSIDE.items()}
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_config(config: Any) -> Any:
    """The results stand at the end of the navigation."""
    results = [
        {Path(page).stem.replace("_", " ").capitalize(): page} for page in OUTSIDE if page.startswith("results/")
    ]
    config.nav.append({"Results": sorted(results, key=str)})
    return config


def on_files(files: Any, config: Any) -> Any:
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links are written for the checkout, where a page of the site may lie in another folder."""
    uri = page.file.src_uri
    here = posixpath.dirname(OUTSIDE.get(uri, f"docs/{uri}"))

    def moved(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(here, link[2]))
        target = PAGES.get(file, file.removeprefix("docs/"))
        if file not in PAGES and not file.startswith("docs/"):
            return link[0]
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(uri) or '.')}{link[3] or ''}{link[4]}"

    return LINK.sub(moved, markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Formulas, and in the reference each argument on a line of its own, as in the docstring."""
    if page.file.src_uri.startswith("api"):
        content = re.sub(r"(<p>|\n)((?:[a-z_]\w*(?:, )?)+): ", _argument, content)

    def formula(found: re.Match[str]) -> str:
        return convert(html.unescape(found[3])[2:-2], display="block" if found[1] == "div" else "inline")

    return re.sub(r'<(span|div) class="(arithmatex)">(.*?)</\1>', formula, content, flags=re.S)


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Nothing is fetched from elsewhere when a page is opened."""
    if fetched := re.findall(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"', output):
        raise PluginError(f"{page.file.src_uri} would fetch {fetched}")


def _argument(found: re.Match[str]) -> str:
    return f"{found[1] if found[1] == '<p>' else '<br>'}<strong>{found[2]}</strong>: "
