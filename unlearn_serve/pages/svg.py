"""matplotlib figures as SVG elements that a page can hold. matplotlib is the extra `report`."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from unlearn_serve.errors import UnlearnServeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    # Text stays text: the file is smaller, and one can search it.
    "svg.fonttype": "none",
    # Ids inside the SVG come from this salt, not from chance: the same figure renders to the same bytes.
    "svg.hashsalt": "unlearn-serve",
}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches; to be filled inside `drawn`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def drawn(draw: Callable[..., "Figure"], *arguments: Any) -> Markup:
    """What `draw` draws, in the pages' style, as an SVG element without the XML prologue.

    Raises:
        UnlearnServeError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise UnlearnServeError(
            "expected matplotlib for the plots, got none; install it with: pip install 'unlearn-serve[report]'"
        ) from None
    target = io.StringIO()
    with mpl.rc_context(STYLE):
        draw(*arguments).savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue()
    return Markup(text[text.index("<svg") :])  # matplotlib escapes what it draws
