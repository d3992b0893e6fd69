"""Scores made up for tests that need no model."""

from typing import Any

from unlearn_serve.evaluation.scores import Scores


def scores(**given: Any) -> Scores:
    """Scores of one example; what is not given is that of an answer known by heart."""
    known: dict[str, Any] = {
        "text": "Ada wrote it.",
        "correct": True,
        "exact_match": True,
        "rouge1": 1.0,
        "rouge_l": 1.0,
        "probability": 1.0,
        "loss": 0.0,
        "tokens": 4,
        "exact_memorisation": 1.0,
        "extraction_strength": 1.0,
        "truth_ratio": None,
        "normalised_probability": None if given.get("truth_ratio") is None else 0.5,
        "zlib": 0.0,
        "min_k": 0.0,
        "min_k_plus_plus": None,
    }
    return Scores(**known | given)
