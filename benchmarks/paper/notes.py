"""The words of docs/results.md that no figure can write."""

INTRODUCTION = """
# Results

The experiments of Chen & Yang, [*Unlearn What You Want to Forget*](https://arxiv.org/abs/2310.20150) (EMNLP 2023), and
what goes beyond them, on SmolLM2-135M-Instruct and a CPU. This page is written by `make paper` from
`benchmarks/results/paper/`; [benchmarks/paper/README.md](../benchmarks/paper/README.md) says what each stage does and how
to run it. The paper's model is T5-base, its data are 20 to 70 times as many, its machine is a GPU: **compare shapes, not
figures**. Where a value has a bracket behind it, it is the mean over seeds with the least and the most, or, for re-trained
models on TOFU, with the 95 % bootstrap interval over rows.
"""

SECTIONS = {
    "tofu": (
        "TOFU: one, two and four authors",
        """
Ten questions about each of thirty fictitious authors, learnt by heart. The re-trained model, which never saw the authors
that go, is the gold standard: what was forgotten should be as likely as there, neither more (not forgotten) nor less (it
shows that something was deleted). `EUL-bounded` is the product's default objective and stops at the level of answers about
sixty questions on other authors, whom no model saw; it knows nothing of the re-trained model. Measures:
[evaluation.md](evaluation.md). Forget quality is high, privacy leak 0, where a method matches the re-trained model.
""",
    ),
    "sequence": (
        "A sequence of deletion requests",
        """
An author a request. RegMean, `cat` and the mean fuse layers that were trained apart, each from the original and guarded by
the ten authors who always stay; the layer that is trained on goes through the requests one after the other; re-training
begins from the base every time. What stays is the guards and all authors not yet asked to go, of whom no layer saw a row.
""",
    ),
    "robustness": (
        "Does it stay forgotten",
        """
Probability and extraction strength of what was forgotten / probability of the guards, after four authors. Rephrased: TOFU's
own paraphrases, which no training saw. Quantised: the base's linear maps rounded to int8 and int4 (symmetric, to nearest,
64 weights a scale) under the same layers. Seen again: all weights, the layers' too, trained on so many of the forgotten
rows, then asked about the others.
""",
    ),
    "imdb": (
        "IMDB: sentiment",
        """
400 reviews, cut to 60 words; test on 200; accuracy: the right label is likelier than the wrong one. Forgotten rows are the
first ones of the sample (the paper: reviews that name an entity). At 0.5 % that is 2 rows and at 1 % 4: their accuracy
moves in steps of a half or a quarter. The LM loss is that of the forgotten reviews as running text, per token. Fine-tune and
reverse gradient take one epoch; SISA has 4 shards of one slice. Published: test / retained / forgot / LM loss / seconds.
""",
    ),
    "samsum": (
        "SAMSum: summaries",
        """
200 dialogues of at most 90 words; ROUGE-1/2/L (F1) of greedy summaries on 32 test and 32 retained rows. Dialogues of the
most frequent speakers go first, as in the paper. Published: test, retained, forgot, LM loss, seconds.
""",
    ),
    "ablation": (
        "Ablation of the paper's objective",
        "IMDB at the smallest share. Published: test / retained / forgot / LM loss at 0.5 %.",
    ),
    "mislabelled": (
        "Mislabelled rows",
        """
A tenth of the IMDB rows has the wrong label and is to be forgotten. *Forgot* is the accuracy on the wrong labels: low where
they had no effect or were unlearned.
""",
    ),
    "membership": (
        "Membership inference",
        """
AUC of attacks that tell forgotten rows from rows that no training saw; 0.5 is ideal, below it the forgotten rows stand out
by being too unlikely. The paper gives the accuracy of an attack.
""",
    ),
    "cost": ("Cost", "Seconds of re-training over seconds of unlearning, fills, checks and Grams included."),
    "shape": (
        "Does the shape agree",
        "What the paper concludes from its tables, in the paper's figures and in ours.",
    ),
}

NOTES: dict[str, str] = {}
"""By claim (`claims.CLAIMS`), why ours does not agree; written after the results were read."""
