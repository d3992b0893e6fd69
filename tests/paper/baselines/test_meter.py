"""The counts are exact, whoever runs the model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks.paper.baselines.fitting import fit_rows
from benchmarks.paper.baselines.meter import Meter, WithinBudget
from benchmarks.paper.baselines.rows import collate
from benchmarks.paper.task import Accounting, Budget, Fit, Kind
from tests.paper.baselines.tasks import MODELS, encoded
from tests.training.toy import toy_model
from unlearn_serve.layers import add_adapter


def counted(meter: Meter) -> Accounting:
    return meter.accounting(stored_bytes=1, served_bytes=1)


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "classes"])
def test_a_fit_counts_each_row_once_an_epoch(kind: Kind) -> None:
    rows = encoded(kind)
    model = MODELS[kind]()
    with Meter() as meter:
        fit = Fit(learning_rate=1e-3, epochs=2, batch_size=4, micro_batch_size=2)
        fit_rows(model, rows, fit, kind=kind, pad=0, seed=0, precision="fp32")
    # Of a classifier the class is no token that the model reads.
    tokens = sum(len(one.encoded.input_ids) - (kind == "classes") for one in rows)
    found = counted(meter)
    assert found.tokens_forward == found.tokens_backward == 2 * tokens
    assert found.optimizer_steps == 2 * -(-len(rows) // 4)
    assert found.trainable_parameters == model.num_parameters()
    assert found.seconds > 0
    assert found.peak_rss_bytes is None or found.peak_rss_bytes > 1e6


@pytest.mark.parametrize("wrap", ["plain", "lora", "lora of a task", "unlearning layers"])
def test_a_pass_counts_once_however_it_is_wrapped(wrap: str) -> None:
    """PEFT calls the model's forward past its hooks in one case and not in the other."""
    model = toy_model(blocks=2)
    if wrap.startswith("lora"):
        task = "CAUSAL_LM" if wrap.endswith("task") else None
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], task_type=task))
    elif wrap == "unlearning layers":
        model = add_adapter(model, rank=2)
    ids = torch.ones(3, 5, dtype=torch.int64)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    with Meter() as meter:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
        model(input_ids=ids, attention_mask=mask)  # no gradient comes back through this one
        model(input_ids=ids, attention_mask=mask).logits.sum().backward()
    found = counted(meter)
    assert (found.tokens_forward, found.tokens_backward, found.optimizer_steps) == (36, 12, 0)


def test_generation_counts_what_the_cache_spares() -> None:
    model = toy_model(blocks=2).eval()
    with Meter() as meter:
        out = model.generate(torch.ones(1, 5, dtype=torch.int64), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert counted(meter).tokens_forward == out.shape[1] - 1, "the last token is said and not read"


def test_nothing_is_counted_after_the_meter_is_left() -> None:
    model = toy_model(blocks=2)
    with Meter() as meter:
        pass
    model(input_ids=torch.ones(1, 5, dtype=torch.int64))
    assert counted(meter) == Accounting(
        seconds=0.0,
        optimizer_steps=0,
        tokens_forward=0,
        tokens_backward=0,
        trainable_parameters=0,
        stored_bytes=1,
        served_bytes=1,
        peak_rss_bytes=counted(meter).peak_rss_bytes,
    )


@pytest.mark.parametrize(("budget", "steps"), [(Budget(steps=3), 3), (Budget(tokens=1), 1), (Budget(seconds=0.0), 1)])
def test_a_fit_stops_at_the_first_cap(budget: Budget, steps: int) -> None:
    with Meter() as meter:
        fit = Fit(learning_rate=1e-3, epochs=9, batch_size=4)
        callbacks = [WithinBudget(meter, budget)]
        rows = encoded("decoder")
        fit_rows(toy_model(blocks=2), rows, fit, kind="decoder", pad=0, seed=0, precision="fp32", callbacks=callbacks)
    assert counted(meter).optimizer_steps == steps


def test_a_weight_of_minus_one_turns_the_gradient_around() -> None:
    """Reverse gradient's forgotten rows: the same step, in the other direction."""
    found = []
    for weight in (1.0, -1.0):
        model = toy_model(blocks=2)
        before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
        rows = [type(one)(one.encoded, weight) for one in encoded("decoder")]
        assert collate(rows, "decoder", 0)["weights"].tolist() == [weight] * len(rows)
        fit = Fit(learning_rate=1e-3, epochs=1, batch_size=len(rows), warmup=0.0)
        fit_rows(model, rows, fit, kind="decoder", pad=0, seed=0, precision="fp32")
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[0], -found[1], rtol=1e-3, atol=1e-6)
