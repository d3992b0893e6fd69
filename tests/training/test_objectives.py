"""Every term against numbers worked out by hand, and where its gradient points."""

import math

import pytest
import torch

from unlearn_serve.training.objectives import (
    EUL,
    NPO,
    Objective,
    kl_divergence,
    mean_by_owner,
    npo,
    objective_loss,
    sum_by_owner,
    token_log_probs,
)

# softmax of these is (1/4, 3/4), (1/2, 1/2)
QUARTER = torch.tensor([[0.0, math.log(3.0)]])
HALF = torch.tensor([[1.0, 1.0]])


def test_token_log_probs() -> None:
    got = token_log_probs(torch.cat([QUARTER, QUARTER, HALF]), torch.tensor([0, 1, 1]))
    torch.testing.assert_close(got, torch.tensor([0.25, 0.75, 0.5]).log())


def test_kl_divergence_is_that_of_teacher_from_student() -> None:
    # 1/4 log(1/4 / 1/2) + 3/4 log(3/4 / 1/2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert kl_divergence(QUARTER, HALF).item() == pytest.approx(expected, abs=1e-6)
    # the other way round it is another number: swapped arguments would show
    assert kl_divergence(HALF, QUARTER).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert kl_divergence(HALF, HALF).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("difference", "beta", "expected"),
    [
        (0.0, 0.5, 4 * math.log(2)),
        (-2.0, 0.5, 4 * math.log(1 + math.exp(-1))),
        (-100.0, 0.5, 0.0),
        (4.0, 0.1, 20 * math.log(1 + math.exp(0.4))),
    ],
)
def test_npo(difference: float, beta: float, expected: float) -> None:
    got = npo(torch.tensor([difference - 7.0]), torch.tensor([-7.0]), beta)
    assert got.item() == pytest.approx(expected, abs=1e-5)


def test_npo_starts_as_gradient_ascent_and_leaves_the_forgotten_alone() -> None:
    student = torch.tensor([-1.0, -20.0], requires_grad=True)
    npo(student, torch.tensor([-1.0, -1.0]), 0.5).sum().backward()
    assert student.grad is not None
    # 2 sigmoid(beta * difference): 1 at a difference of 0, almost 0 at -19 nats
    torch.testing.assert_close(student.grad, torch.tensor([1.0, 2 / (1 + math.exp(9.5))]))


def test_sums_and_means_by_owner() -> None:
    values, owner = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 2, 2, 0])
    assert sum_by_owner(values, owner, 3).tolist() == [9.0, 0.0, 6.0]
    assert mean_by_owner(values, owner, 3).tolist() == [4.5, 0.0, 3.0]


def test_the_papers_objective_has_the_papers_weights_and_signs() -> None:
    terms = {name: torch.tensor(v) for name, v in {"retain_kl": 2.0, "forget_kl": 3.0, "retain_task": 5.0}.items()}
    terms["forget_lm"] = torch.tensor(7.0)
    assert objective_loss(terms, EUL).item() == pytest.approx(0.8 * 2 - 1.0 * 3 + 1.0 * 5 - 0.2 * 7)


def test_each_term_can_be_switched_off() -> None:
    terms = {name: torch.tensor(1.0) for name in ("retain_kl", "forget_kl", "retain_task", "forget_lm", "forget_npo")}
    for name, sign in (("forget_npo", 1), ("forget_kl", -1), ("forget_lm", -1)):
        assert objective_loss(terms, Objective(**{name: 3.0})).item() == pytest.approx(sign * 3.0)


@pytest.mark.parametrize("name", ["forget_npo", "forget_kl", "forget_lm", "retain_kl", "retain_task"])
def test_a_step_against_the_gradient_does_what_the_term_is_for(name: str) -> None:
    """One small step lowers the answer's probability for forgetting terms and raises it for retaining ones."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(3, 11, generator=generator)
    labels, owner = teacher.argmax(-1), torch.tensor([0, 0, 1])
    student = (teacher + 0.3 * torch.randn(3, 11, generator=generator)).requires_grad_()
    log_probs = token_log_probs(student, labels)
    terms = {
        "forget_npo": npo(sum_by_owner(log_probs, owner, 2), torch.zeros(2), 0.5).mean(),
        "forget_kl": kl_divergence(teacher, student).mean(),
        "forget_lm": -log_probs.mean(),
        "retain_kl": kl_divergence(teacher, student).mean(),
        "retain_task": -log_probs.mean(),
    }
    weights = {name: 1.0} if name.startswith("forget") else {name: 1.0, "forget_lm": 1e-9}
    objective_loss({name: terms[name]}, Objective(**weights)).backward()
    with torch.no_grad():
        stepped = student - 0.1 * student.grad
    if name.endswith("kl"):
        before, after = (kl_divergence(teacher, s).mean() for s in (student, stepped))
        assert after > before if name == "forget_kl" else after < before
    else:
        gained = token_log_probs(stepped, labels).mean() - log_probs.mean()
        assert gained < 0 if name.startswith("forget") else gained > 0


def test_defaults() -> None:
    assert (EUL.retain_kl, EUL.retain_task, EUL.forget_lm, EUL.forget_kl) == (0.8, 1.0, 0.2, 1.0)
    assert NPO.forget_npo > 0
    assert NPO.forget_kl == NPO.forget_lm == 0, "the default must be bounded below"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"retain_kl": 1.0}, "got none"),
        ({"forget_npo": 1.0, "npo_beta": 0.0}, "npo_beta: expected a number > 0"),
        ({"forget_npo": -1.0}, "forget_npo: expected a number >= 0, got -1.0"),
        ({"forget_lm": math.nan}, "forget_lm: expected a number >= 0, got nan"),
    ],
)
def test_refuses_senseless_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**weights)
