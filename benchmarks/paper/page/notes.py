"""The words of docs/results.md that no figure can write; what stands in braces comes from the run's `Sizes`."""

INTRODUCTION = """
# Results

The experiments of Chen & Yang, [*Unlearn What You Want to Forget*](https://arxiv.org/abs/2310.20150) (EMNLP 2023),
and what goes beyond them, on {s.base} and a CPU. This page is written by `make paper` out of
`benchmarks/results/paper/`; [benchmarks/paper/README.md](../benchmarks/paper/README.md) says what each stage does and
how to run it. The paper's model is T5-base, its data are many times as many, its machine is a GPU: **compare shapes,
not figures**. A value with a bracket behind it is the mean over seeds with the least and the most; of a re-trained
model on TOFU, with the 95 % bootstrap interval over rows. Only `EUL-bounded` on TOFU with one author has three seeds;
all else has one, for time, so that an order of two neighbours in a table may be chance.

TOFU re-trained without one author and `EUL-bounded` for that author, the rows of EUL, the ablation, the mislabelled
rows, the studies of blocks and of guards and all of "Does it stay forgotten" were made later than the others, on a
CPU of the same name that has no AVX-512, where a step takes about three times as long, and from fine-tuned models and
layers that were made again there (of the same rows and seeds; bfloat16 sums differ, and a layer lands elsewhere).
Compare their seconds with each other only. TOFU's original was made first of all and took longer a step than those
re-trained with two and more authors gone, which its record does not explain.

There is no row for T5, the paper's model: layers for it are trained, fused and scored by the same commands
([training.md](training.md), tested on small models), but the experiments are on one decoder that the engine serves.
The paper's sequences are on IMDB, ours on TOFU, where a request is a person. `MEND-like` stands beside the published
MEND and is MEMIT, SISA's shards count as made beforehand: [baselines.md](baselines.md).
"""

SECTIONS = {
    "tofu": (
        "TOFU",
        """
{s.tofu.questions} questions about each of {authors} fictitious authors, learnt by heart in {s.tofu_fit.epochs}
epochs; then some authors are to go. The re-trained model, which never saw those, is the gold standard: what was
forgotten should be as likely as there, neither more (not forgotten) nor less (it shows that something was deleted).
`EUL-bounded` forgets a token at a time (`tnpo`) and lands on the level of {s.tofu.holdout} answers about other
authors, whom no model saw; it knows nothing of the re-trained model. LoRA is told to as well. With four authors
neither gets there within {s.steps} steps. EUL is the paper's objective, which has no point to stop at: its learning
rate alone decides how much it forgets. The paper's 5e-5 is for thousands of steps, here there are dozens, so each
data set has a rate of its own ({s.eul_learning_rates[tofu]:g} here, {s.eul_learning_rates[imdb]:g} on IMDB,
{s.eul_learning_rates[samsum]:g} on SAMSum), chosen on these very rows between forgetting nothing and destroying the
model; with four authors it takes more steps, and they do destroy it. LoRA, EUL and `EUL-bounded` read {s.guard_rows}
of the retained rows, the last {s.tofu_guard_rows} for one author (after "How many rows guard the rest", on this very
request), all others all of them; fine-tune and reverse gradient take one epoch. The seconds of `EUL-bounded` for one
author are those of a later request on the same model, which finds what the frozen model makes of the retained rows
(`--frozen-cache`); "Cost" has a first one's. Measures: [evaluation.md](evaluation.md). Privacy leak is 0 where a
method matches the re-trained model, and forget quality high; but that is a test on 8, 16 and 32 rows, which has
little power: MEND-like, which destroys the answers, passes it (above 0.05) with one author and two, and `EUL-bounded`
fails it with two. Greedy answers end after {s.answer_tokens} tokens, which many right answers exceed, so that even
the original says little more than half of what stays word for word.
""",
    ),
    "blocks_study": (
        "Which blocks matter",
        """
One author forgotten by `EUL-bounded` with layers elsewhere and {s.guard_rows} guards, everything else being as above;
one seed. The paper's are in all blocks. Any eight of them keep alike; the last ones take half the time, for what the
blocks before them make of each row is computed once, and forget least beyond the hold-out level. Layers in all
blocks, at the same learning rate, go further and keep less.
""",
    ),
    "guards_study": (
        "How many rows guard the rest",
        """
One author forgotten by `EUL-bounded`, which reads so many of the rows that stay ({kept} there are); everything else
is as above but that nothing was kept from an earlier request; one seed, on the CPU without AVX-512. Here what stays
moves less the more of it is read, and a row costs its pass through the frozen model. Do not make a law of it: how
soon a run meets its target varies with the seed and with rounding, and one that ends soon keeps less whatever it
reads.
""",
    ),
    "sequence": (
        "A sequence of deletion requests",
        """
An author a request. RegMean, `cat` and the mean fuse layers that were trained apart, each from the original and
guarded by {s.sequence.guard_rows} rows of those who have not asked to go by then; the layer that is trained on goes
through the requests one after the other; re-training begins from the base every time. All layers share one frozen
W_down of rank {s.sequence.rank} behind a relu and are trained in W_up alone (`--freeze-down`): their maps then read
the same features, `cat` is their sum at the same rank, and RegMean's closed form fuses linear maps. *RegMean* counts
a retained row {s.sequence.retained:g} times beside a forgotten one and multiplies what comes out for N requests by
N^{s.sequence.gain:g}, two figures that were chosen on the first {s.sequence.study} of these very requests; *as
published* counts it once and multiplies by nothing. So that a fusion's compromise still forgets, a layer is told to
go down to the extraction strength of the hold-out rows and to {s.sequence.target[0]:g} times their probability: below
the level of a model that never saw them, which by itself tells that something was deleted, and it costs retained
rows. Where its {s.sequence.max_steps} steps end before both are reached, it is taken as it is.
""",
    ),
    "gram_study": (
        "What RegMean's parameters do",
        """
The layers of the first {s.sequence.study} requests, fused by RegMean with one parameter changed at a time: what a
retained row counts, how much of a Gram's off-diagonal is kept, the ridge, the scale of a Gram
([fusion.md](fusion.md)).
""",
    ),
    "robustness": (
        "Does it stay forgotten",
        """
Probability and extraction strength of what was forgotten / probability of the guards, after {s.robustness_forget}
authors. Rephrased: TOFU's own paraphrases, which no training saw. Quantised: the base's linear maps rounded to int8
and int4 (symmetric, to nearest, 64 weights a scale) under the same layers. Seen again: all weights, the layers' too,
trained for {s.relearn_steps} steps on so many of the forgotten rows, then asked about the others. The layers of
`EUL-bounded` are not those of TOFU's table but were made again on the slower CPU, where they landed lower.

Other words bring nothing back, and fewer bits next to nothing: at int4 it is the guards that suffer, more under
layers than without. Training does: the re-trained model learns nothing about the other rows from it, but of what the
layers cover probability comes back for a good part, after two rows already, and extraction strength for a smaller
one. The base still holds it. So layers protect from whoever can ask; whoever can train the weights can take the
layers off as well.
""",
    ),
    "imdb": (
        "IMDB: sentiment",
        """
{s.imdb.train} reviews, cut to {s.imdb.words} words; test on {s.imdb.test}. Accuracy: the right label is likelier than
the wrong one. Forgotten rows are the first ones of the sample (the paper: reviews that name an entity): one review,
two and 16. `EUL-bounded` and LoRA stop at the probability that the original gives the right labels of the test rows,
whence the hold-out rows come here: what is forgotten becomes as likely as what was never seen, and the right label is
likelier than the wrong one there as well, so that accuracy falls no further than to about that of the test rows. The
LM loss is that of the forgotten reviews as running text, per token. Fine-tune and reverse gradient take one epoch;
SISA has {s.shards} shards of one slice. Published: test / retained / forgot / LM loss / seconds.
""",
    ),
    "samsum": (
        "SAMSum: summaries",
        """
{s.samsum.train} dialogues of at most {s.samsum.words} words; ROUGE-1/2/L (F1) of greedy summaries on {s.samsum.test}
test and {s.samsum.retained} retained rows. Dialogues of the most frequent speakers go first: the paper too chooses
them by who speaks. Published: test, retained, forgot, LM loss, seconds; "-" and empty cells are figures of the
paper's table that we do not have at hand, but for LoRA and `EUL-bounded`, which it does not list. The smallest share
is one dialogue, the next two.
""",
    ),
    "ablation": (
        "Ablation of the paper's objective",
        """
IMDB at the largest share: the smallest is a single review here. Published: test / retained / forgot / LM loss, at
0.5 %.
""",
    ),
    "mislabelled": (
        "Mislabelled rows",
        """
A tenth of the IMDB rows has the wrong label and is to be forgotten. *Forgot* is the accuracy on the wrong labels: low
where they had no effect or were unlearned.
""",
    ),
    "membership": (
        "Membership inference",
        """
AUC of attacks that tell forgotten rows from rows that no training saw; 0.5 is ideal, below it the forgotten rows
stand out by being too unlikely. The paper gives the accuracy of an attack.
""",
    ),
    "cost": (
        "Cost",
        """
Seconds of re-training over seconds of unlearning: what it computes of the frozen model first is included, but for what
an earlier request kept of it where the table says so; the original's level on the hold-out rows, known since before any
request, is not. Both were made on one kind of machine, not in one run.
""",
    ),
    "shape": (
        "Does the shape agree",
        "What the paper concludes from its tables, in the paper's figures and in ours.",
    ),
}

NOTES = {
    "over-forgets": "EUL's only stop is its learning rate, which was chosen so as to keep the test rows: at that "
    "rate it comes to the re-trained model's level",
    "forgets-most": "MEND-like forgets all 16 rows and most else with them; of the paper's methods that keep the "
    "test rows, EUL, SISA and re-training share the lowest place",
    "keeps": "by one row; EUL reads 40 retained rows, reverse gradient all of them",
    "reverses": "one epoch of 20 steps takes no row across the line; that it moves them the LM loss tells, 8.32 "
    "against the original's 7.03",
    "summaries": "the learning rate again: two dozen steps at one that keeps the retained summaries go less far "
    "than leaving the 16 dialogues out",
    "without-lm-forgets": "nothing is, nor much without KL: at the rate that was chosen for the whole objective, "
    "neither term goes far without the other",
    "fused-keeps": "the parameters were chosen to forget: fused so, all three requests are forgotten; the layer "
    "that is trained on forgot one of them",
    "published-forgets": "retained rows outnumber the forgotten and ask for the mean of all layers: "
    "[fusion.md](fusion.md)",
    "mislabelled": "re-training learns the right labels from the other rows; EUL takes a wrong one back, at its "
    "rate as far as a coin toss, and learns nothing in its place",
}
"""By claim (`claims.CLAIMS`), why ours does not agree; written after the results were read."""

REMARKS = {
    "keeps-test": "by one row",
    "faster": "in fewer steps than the paper's, at a rate of its own; EUL-bounded: see Cost",
    "mend": "MEMIT here",
    "without-kl": "by two rows of 16",
    "without-task": "by one row of 40",
    "attack": "by little, and Min-K++ says the opposite",
}
"""By claim, with what reserve it agrees."""
