"""Every way a gold string can begin in tokens.

Push down one token and a model finds the next way to spell the same name (" Shakespeare", " Shakes" + "peare",
" shakespeare"). So the first token of a gold string to be forgotten counts with all tokens that could begin it.
"""

from collections import defaultdict

import torch
from transformers import PreTrainedTokenizerBase


class Spellings:
    """The vocabulary by text, without surrounding white space and whatever the case."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the whole vocabulary once."""
        ids = range(len(tokenizer))
        self._by_text: dict[str, list[int]] = defaultdict(list)
        for token, text in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True):
            if bare := text.strip().casefold():
                self._by_text[bare].append(token)

    def beginnings(self, gold: str, first_token: int) -> torch.Tensor:
        """Return the ids, int64 [K] in order, of tokens that begin `gold` or begin with it, and of `first_token`."""
        wanted = gold.strip().casefold()
        found = {first_token}
        for text, tokens in self._by_text.items():
            if wanted.startswith(text) or text.startswith(wanted):
                found.update(tokens)
        return torch.tensor(sorted(found))
