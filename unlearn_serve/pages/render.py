"""Fill a page's template."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render(template: Path, **content: Any) -> str:
    """Render an HTML template that extends `page.html` of this folder.

    Everything in `content` is escaped but `Markup`; the filter `mark` marks a string inside a text.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mark"] = mark
    return environment.get_template(template.name).render(**content)


def mark(text: str, wanted: str) -> Markup:
    """Escape `text` for HTML and mark the first place where `wanted` occurs in it, whatever its case."""
    begin = text.casefold().find(wanted.casefold())
    if begin < 0:
        return Markup.escape(text)
    end = begin + len(wanted)
    return Markup("{}<mark>{}</mark>{}").format(text[:begin], text[begin:end], text[end:])
