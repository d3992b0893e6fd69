"""A receipt as one HTML page, for people: no script, nothing loaded from elsewhere."""

import hashlib
from pathlib import Path

import jinja2

from unlearn_serve.audit.receipt import Receipt

_TEMPLATE = Path(__file__).with_name("receipt.html")


def receipt_page(receipt: Receipt, *, signed_by: str | None) -> str:
    """The page of `receipt`.

    Args:
        receipt: what to show.
        signed_by: the public key that signed its JSON, or None.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["moment"] = lambda moment: f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        receipt=receipt, digest=hashlib.sha256(receipt.to_bytes()).hexdigest(), signed_by=signed_by
    )
