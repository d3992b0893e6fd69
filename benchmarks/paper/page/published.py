"""The paper's figures: Chen & Yang, "Unlearn What You Want to Forget", EMNLP 2023 (arXiv 2310.20150), T5-base."""

IMDB: dict[str, dict[str, tuple[float, float, float, float, float | None]]] = {
    "original": dict.fromkeys(("0.5", "1", "10"), (93.2, 100.0, 100.0, 1.46, None)),
    "retrain": {
        "0.5": (92.8, 100.0, 92.5, 1.52, 6685),
        "1": (92.7, 100.0, 91.6, 1.55, 6610),
        "10": (92.1, 100.0, 90.2, 1.56, 6026),
    },
    "finetune": {
        "0.5": (93.0, 100.0, 96.5, 1.47, 4200),
        "1": (92.8, 100.0, 96.2, 1.48, 3950),
        "10": (92.0, 100.0, 95.8, 1.52, 3133),
    },
    "sisa": {
        "0.5": (92.4, 98.2, 91.5, 1.54, 1580),
        "1": (92.2, 98.1, 90.4, 1.55, 2930),
        "10": (91.6, 98.2, 88.4, 1.55, 2010),
    },
    "reverse-gradient": {
        "0.5": (92.0, 97.3, 68.6, 1.56, 4400),
        "1": (91.5, 96.4, 67.4, 1.59, 4166),
        "10": (91.0, 96.5, 65.4, 1.62, 3228),
    },
    "mend-like": {
        "0.5": (92.2, 98.5, 73.5, 1.60, 34),
        "1": (91.3, 95.5, 74.6, 1.62, 62),
        "10": (90.8, 94.8, 76.2, 1.66, 328),
    },
    "eul": {
        "0.5": (93.0, 100.0, 65.7, 1.78, 1200),
        "1": (93.0, 100.0, 64.4, 1.84, 1526),
        "10": (92.2, 99.0, 57.2, 2.01, 1828),
    },
}
"""By method and percent forgotten: accuracies in percent, LM loss, seconds. MEND stands in the row of `mend-like`."""

SAMSUM: dict[str, dict[str, tuple[str, str, str, float | None, float | None]]] = {
    "original": {"0.5": ("47.2/23.5/39.6", "71.4/42.6/62.7", "70.2/42.2/62.7", None, None)},
    "retrain": {"0.5": ("", "", "42.4/23.2/42.0", None, 28000)},
    "eul": {"0.5": ("46.8/23.0/38.5", "71.5/42.4/63.3", "38.4/20.2/37.2", 1.88, 17060)},
}
"""By method and percent forgotten: ROUGE-1/2/L, LM loss, seconds; empty where not at hand."""

ABLATION = {
    "eul": (93.0, 100.0, 65.7, 1.78),
    "without-kl": (91.4, 100.0, 90.8, 1.75),
    "without-task": (91.0, 97.4, 67.4, 1.78),
    "without-lm": (92.4, 99.0, 69.0, 1.50),
}
MISLABELLED = {"retrain": (92.5, 100.0, 12.6), "eul": (93.0, 99.0, 5.0)}
MEMBERSHIP = {"original": 0.542, "retrain": 0.550, "eul": 0.566}
"""Accuracy of the attack; 0.5 is ideal."""

SEQUENCE = {
    "trained-on": ((93.0, 64.6), (92.1, 64.8), (91.0, 64.2)),
    "regmean": ((93.0, 64.6), (92.8, 62.2), (92.4, 60.8)),
}
"""Accuracy on test and on what was to be forgotten after one, two and three requests, IMDB."""

SPEEDUP = {"0.5": 5.6, "10": 3.3}
"""Re-training's time over EUL's."""
