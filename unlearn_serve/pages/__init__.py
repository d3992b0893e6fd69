"""Self-contained HTML pages: one style, plots as SVG inside, nothing loaded from elsewhere."""

from unlearn_serve.pages.render import mark, render
from unlearn_serve.pages.svg import drawn, new_figure

__all__ = ["drawn", "mark", "new_figure", "render"]
