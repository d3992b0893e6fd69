"""Question and text sets: JSONL files in, token ids with labels out. Shared by training and evaluation."""

from unlearn_serve.data.batch import IGNORED, Encoded, collate_left
from unlearn_serve.data.encoding import encode, prompt_ids
from unlearn_serve.data.jsonl import data_ref, read_examples
from unlearn_serve.data.rows import Example, Message

__all__ = [
    "IGNORED",
    "Encoded",
    "Example",
    "Message",
    "collate_left",
    "data_ref",
    "encode",
    "prompt_ids",
    "read_examples",
]
