"""Every term against numbers worked out by hand, and where its gradient points."""

import math

import pytest
import torch

from unlearn_serve.training.levels import extraction_strengths
from unlearn_serve.training.objectives import Objective, objective_loss
from unlearn_serve.training.terms import (
    Answers,
    Likeliest,
    coarse_kl,
    drift,
    idk,
    kl,
    lm_loss,
    masked_mean,
    masked_sum,
    misdirection,
    npo,
    simnpo,
    tnpo,
    token_log_probs,
)

# softmax of these is (1/4, 3/4), (1/2, 1/2)
QUARTER = torch.tensor([[0.0, math.log(3.0)]])
HALF = torch.tensor([[1.0, 1.0]])
LOGITS = torch.cat([QUARTER, QUARTER, HALF])
LABELS = torch.tensor([0, 1, 1])  # so the tokens' probabilities are 1/4, 3/4, 1/2
MASK = torch.tensor([[True, True, False], [False, False, True]])  # one answer of two tokens, one of one
ONE = torch.tensor([[True]])


def answers(teacher: list[float] | None = None, **options: object) -> Answers:
    """`teacher`: its log-probability of each of the three tokens."""
    known = None if teacher is None else torch.tensor(teacher)
    return Answers(**{"student_logits": LOGITS, "labels": LABELS, "mask": MASK, "teacher_log_probs": known, **options})


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_token_log_probs() -> None:
    torch.testing.assert_close(token_log_probs(LOGITS, LABELS), torch.tensor([0.25, 0.75, 0.5]).log())


def test_log_probs_are_means_and_of_gold_strings_sums() -> None:
    expected = [math.log(0.25 * 0.75) / 2, math.log(0.5)]
    torch.testing.assert_close(answers().log_probs(), torch.tensor(expected))
    # The first answer is a gold string whose first token may be 0 or 1: it is certain, so the second token decides.
    spelt = answers(spellings={0: torch.tensor([0, 1])})
    torch.testing.assert_close(spelt.token_log_probs(), torch.tensor([1.0, 0.75, 0.5]).log())
    torch.testing.assert_close(spelt.log_probs(), torch.tensor([0.75, 0.5]).log())


def test_log_ratios_compare_with_the_teacher() -> None:
    one = answers([-1.0, -3.0, math.log(0.25)])
    torch.testing.assert_close(one.log_ratios(), torch.tensor([math.log(0.25 * 0.75) / 2 + 2, math.log(2.0)]))
    # Of a gold string both sides are sums.
    spelt = answers([-1.0, -3.0, -1.0], spellings={0: torch.tensor([0])})
    torch.testing.assert_close(spelt.log_ratios(), torch.tensor([math.log(0.25 * 0.75) + 4, math.log(0.5) + 1]))


def test_masked_sum_and_mean() -> None:
    values, mask = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
    assert masked_sum(values, mask).tolist() == [9.0, 0.0, 6.0]
    assert masked_mean(values, mask).tolist() == [4.5, 0.0, 3.0]


def test_kl_is_that_of_teacher_from_student() -> None:
    half, quarter = HALF.log_softmax(-1), QUARTER.log_softmax(-1)
    # 1/4 log(1/4 / 1/2) + 3/4 log(3/4 / 1/2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl(HALF, quarter, ONE).item() == pytest.approx(expected, abs=1e-6)
    # the other way round it is another number: swapped arguments would show
    assert kl(QUARTER, half, ONE).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert kl(HALF, half, ONE).item() == pytest.approx(0.0, abs=1e-7)
    # an answer's mean: over tokens 0 (equal) and 1 (the first case)
    both = kl(torch.cat([HALF, HALF]), torch.cat([half, quarter]), torch.tensor([[True, True]]))
    assert both.item() == pytest.approx(expected / 2, abs=1e-6)


def test_lm_loss_is_the_cross_entropy_per_token() -> None:
    expected = [-math.log(0.25 * 0.75) / 2, math.log(2.0)]
    torch.testing.assert_close(lm_loss(answers()), torch.tensor(expected))


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_npo(beta: float) -> None:
    ratios = [math.log(0.25 * 0.75) / 2 + 2, math.log(0.5) + 0.5]
    got = npo(answers([-1.0, -3.0, -0.5]), beta)
    torch.testing.assert_close(got, torch.tensor([2 / beta * softplus(beta * ratio) for ratio in ratios]))


def ratio_gradient(difference: float, beta: float) -> float:
    """The gradient of npo at an answer whose log-probability differs so much from the teacher's."""
    log_q = torch.tensor([-1.0 + difference], requires_grad=True)
    logits = torch.stack([log_q, torch.log1p(-log_q.exp())], dim=-1)
    one = Answers(
        student_logits=logits, labels=torch.tensor([0]), mask=ONE, teacher_log_probs=torch.tensor([-1.0]), spellings={}
    )
    (gradient,) = torch.autograd.grad(npo(one, beta).sum(), log_q)
    return gradient.item()


def test_npo_starts_as_gradient_ascent_and_leaves_the_forgotten_alone() -> None:
    # 2 sigmoid(beta * difference): 1 at a difference of 0, almost 0 at -19 nats
    assert ratio_gradient(0.0, 0.5) == pytest.approx(1.0, abs=1e-4)
    assert ratio_gradient(-19.0, 0.5) == pytest.approx(2 / (1 + math.exp(9.5)), abs=1e-6)


def test_tnpo_is_npo_of_each_token() -> None:
    got = tnpo(answers([-1.0, -3.0, -0.5]), 2.0)
    each = [2 / 2 * softplus(2 * x) for x in (math.log(0.25) + 1, math.log(0.75) + 3, math.log(0.5) + 0.5)]
    torch.testing.assert_close(got, torch.tensor([(each[0] + each[1]) / 2, each[2]]))


def test_tnpo_leaves_a_fallen_token_alone_while_its_neighbour_still_falls() -> None:
    """By the mean over the answer, as in npo, both tokens have the same weight whatever they have lost."""
    log_q = torch.tensor([-9.0, -0.1], requires_grad=True)
    logits = torch.stack([log_q, torch.log1p(-log_q.exp())], dim=-1)
    both = torch.tensor([[True, True]])
    one = Answers(
        student_logits=logits, labels=torch.tensor([0, 0]), mask=both, teacher_log_probs=torch.tensor([0.0, 0.0])
    )
    (by_token,) = torch.autograd.grad(tnpo(one, 1.0).sum(), log_q, retain_graph=True)
    (by_answer,) = torch.autograd.grad(npo(one, 1.0).sum(), log_q)
    assert by_token[0] < 0.001 * by_token[1]
    torch.testing.assert_close(by_answer[0], by_answer[1])


def test_coarse_kl_puts_all_but_the_likeliest_together() -> None:
    r = torch.tensor([[0.6, 0.2, 0.1, 0.1]]).log()
    q = torch.tensor([[0.1, 0.1, 0.3, 0.5]]).log()
    kept = Likeliest.of(r, 2)
    assert kept.ids.tolist() == [[0, 1]]
    torch.testing.assert_close(kept.log_probs.exp(), torch.tensor([[0.6, 0.2, 0.2]]))
    expected = 0.6 * math.log(0.6 / 0.1) + 0.2 * math.log(0.2 / 0.1) + 0.2 * math.log(0.2 / 0.8)
    assert coarse_kl(q, kept, ONE).item() == pytest.approx(expected, abs=1e-6)
    assert coarse_kl(r, kept, ONE).item() == pytest.approx(0.0, abs=1e-6)
    assert coarse_kl(q, kept, ONE) < kl(q, r, ONE)
    # One left out is a class of its own, so nothing is lost.
    assert coarse_kl(q, Likeliest.of(r, 3), ONE).item() == pytest.approx(kl(q, r, ONE).item(), abs=1e-6)
    # More than there are: the rest has no mass to speak of.
    assert coarse_kl(q, Likeliest.of(r, 9), ONE).item() == pytest.approx(kl(q, r, ONE).item(), abs=1e-4)
    two = Likeliest.joined([kept, Likeliest.of(q, 2)])
    mean = coarse_kl(torch.cat([q, q]), two, torch.tensor([[True, True]])).item()
    assert mean == pytest.approx(expected / 2, abs=1e-6)


def test_extraction_strength_counts_from_the_last_word() -> None:
    """As in tests/evaluation, and a token that ends the turn is no word: whether it follows tells nothing."""
    best = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    labels = torch.tensor([0, 9, 2, 3, 4, 5, 9, 7])  # misses at places 1 and 6
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, :4] = mask[1, 4:6] = mask[2, 6:] = True
    logits = torch.nn.functional.one_hot(best, 10).float()
    got = extraction_strengths(Answers(student_logits=logits, labels=labels, mask=mask), [False] * 3)
    torch.testing.assert_close(got, torch.tensor([2 / 4, 1.0, 1 / 2]))
    whole = torch.tensor([[True] * 7 + [False]])
    one = Answers(student_logits=logits, labels=labels, mask=whole)
    assert extraction_strengths(one, [False]).item() == pytest.approx(1 / 7), "the last word does not follow"
    assert extraction_strengths(one, [True]).item() == pytest.approx(4 / 6)


def test_simnpo_reads_no_teacher_and_shifts_by_the_margin() -> None:
    means = [math.log(0.25 * 0.75) / 2, math.log(0.5)]
    torch.testing.assert_close(
        simnpo(answers(), 2.5, 0.0), torch.tensor([2 / 2.5 * softplus(2.5 * mean) for mean in means])
    )
    # -2/beta log sigmoid(-beta mean - margin), written out
    expected = [-2 / 2.5 * math.log(1 / (1 + math.exp(2.5 * mean + 0.3))) for mean in means]
    torch.testing.assert_close(simnpo(answers(), 2.5, 0.3), torch.tensor(expected))


def test_idk_prefers_the_refusal() -> None:
    got = idk(torch.tensor([0.0, 3.0, -3.0]), torch.tensor([0.0, -1.0, 1.0]), 0.5)
    # differences 0, 4, -4
    expected = [4 * math.log(2), 4 * softplus(-2), 4 * softplus(2)]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_misdirection_and_drift() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    student = torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    up = torch.tensor([0.0, 1.0])
    mask = torch.tensor([[True, True, False], [False, False, True]])
    # strength 2: targets (0, 10), (0, 4), (0, 2); squared gaps 100, 4, 2; over |h|^2 = 25, 4, 1
    got = misdirection(student, teacher, mask, up, 2.0)
    torch.testing.assert_close(got, torch.tensor([(100 / 25 + 4 / 4) / 2, 2.0]))
    # |y - h|^2 = 25, 0, 1
    torch.testing.assert_close(drift(student, teacher, mask), torch.tensor([(25 / 25 + 0) / 2, 1.0]))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32(half: torch.dtype) -> None:
    got = answers([-1.0, -1.0, -1.0], student_logits=LOGITS.to(half))
    for values in (got.token_log_probs(), lm_loss(got), npo(got, 1.0), tnpo(got, 1.0), simnpo(got, 1.0, 0.0)):
        assert values.dtype == torch.float32


TERMS = (
    "forget_npo",
    "forget_tnpo",
    "forget_reference",
    "forget_simnpo",
    "forget_idk",
    "forget_kl",
    "forget_lm",
    "retain_kl",
    "retain_task",
)


@pytest.mark.parametrize("name", TERMS)
def test_a_step_against_the_gradient_does_what_the_term_is_for(name: str) -> None:
    """One small step lowers the answer's probability for forgetting terms and raises it for retaining ones."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 11, generator=generator)
    student = (teacher + 0.3 * torch.randn(3, 11, generator=generator)).requires_grad_()
    labels, log_p = teacher.argmax(-1), teacher.log_softmax(-1)
    one = Answers(student_logits=student, labels=labels, mask=MASK, teacher_log_probs=torch.zeros(3))
    never_saw = Likeliest.of(torch.zeros(3, 11), 11)
    values = {
        "forget_npo": lambda: npo(one, 0.5),
        "forget_tnpo": lambda: tnpo(one, 0.5),
        "forget_reference": lambda: coarse_kl(student, never_saw, MASK),
        "forget_simnpo": lambda: simnpo(one, 0.5, 0.0),
        "forget_idk": lambda: idk(torch.zeros(2), one.log_ratios(), 0.5),
        "forget_kl": lambda: kl(student, log_p, MASK),
        "forget_lm": lambda: lm_loss(one),
        "retain_kl": lambda: kl(student, log_p, MASK),
        "retain_task": lambda: lm_loss(one),
    }
    weights = {name: 1.0} if name.startswith("forget") else {name: 1.0, "forget_lm": 1e-9}
    objective_loss({name: values[name]().mean()}, Objective(**weights)).backward()
    with torch.no_grad():
        stepped = student - 0.1 * student.grad
    if name.endswith("kl"):
        before, after = (kl(s, log_p, MASK).mean() for s in (student, stepped))
        assert after > before if name == "forget_kl" else after < before
    else:
        gained = (token_log_probs(stepped, labels) - token_log_probs(student, labels)).mean()
        assert gained < 0 if name.startswith("forget") else gained > 0
