"""The editor's algebra against brute force, and that it edits what it says."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.paper.baselines import BASELINES
from benchmarks.paper.baselines.mend_like import second_moments, unlikelihood, weight_update
from benchmarks.paper.baselines.models import ffn_output_maps, load_original
from benchmarks.paper.baselines.passes import Pass
from benchmarks.paper.task import Budget, Kind
from tests.paper.baselines.tasks import MODELS, MakeTask, encoded, tensors
from tests.training.toy import toy_model
from unlearn_serve.errors import UnsupportedModel


def test_unlikelihood_of_one_of_two_classes_is_training_on_the_other() -> None:
    logits = torch.tensor([[3.0, -1.0], [0.5, 0.25], [60.0, -60.0]], requires_grad=True)
    labels = torch.tensor([0, 1, 0])
    torch.testing.assert_close(unlikelihood(logits, labels), F.cross_entropy(logits, 1 - labels, reduction="none"))
    unlikelihood(logits, labels).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[2].abs().max() > 0.9, "a row that is certain is pushed the hardest"


def test_weight_update_is_the_least_squares_solution() -> None:
    """min over W of sum |W k - r|^2 + weight mean over retained k' of |W k'|^2, by torch's own solver."""
    generator = torch.Generator().manual_seed(0)
    keys, residuals, retained = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 7), (3, 4), (20, 7))
    )
    weight = 5.0
    update = weight_update(keys, residuals, retained.T @ retained / len(retained), weight)
    stacked = torch.cat([keys, (weight / len(retained)) ** 0.5 * retained])
    wanted = torch.cat([residuals, torch.zeros(len(retained), 4, dtype=torch.float64)])
    torch.testing.assert_close(update, torch.linalg.lstsq(stacked, wanted).solution.T, rtol=1e-4, atol=1e-5)
    free = weight_update(keys, residuals, torch.zeros(7, 7, dtype=torch.float64), weight)
    torch.testing.assert_close(keys @ free.T, residuals, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "classes"])
def test_a_pass_reads_and_moves_the_positions_that_predict_the_labels(kind: Kind) -> None:
    """With a shift at the last block's output there, and nowhere else, the labels' logits move, all of them."""
    model = MODELS[kind]().eval().requires_grad_(False)
    rows = encoded(kind)
    one = Pass(model, rows, kind, 0)
    assert one.labels.tolist() == [label for row in rows for label in row.encoded.labels if label != -100]
    path, linear = list(ffn_output_maps(model).values())[-1]
    block = path.rpartition(".")[0].rpartition(".")[0]
    with one.states(model, block) as seen, one.inputs(model, path) as read:
        before = one.logits(model)
    assert len(seen[0]) == len(read[0]) == len(before) == len(one.labels)
    # The last block's states at these positions, through what is left of the model, are these logits.
    final, head = _after_the_blocks(model, kind)
    torch.testing.assert_close(head(final(seen[0])), before, rtol=1e-4, atol=1e-4)
    assert read[0].shape[1] == linear.weight.shape[1]
    with one.shifted(model, block, 0.5 * torch.randn_like(seen[0])):
        after = one.logits(model)
    assert ((after - before).abs().amax(-1) > 1e-4).all()
    assert torch.equal(one.logits(model), before), "the shift is gone afterwards"


def _after_the_blocks(model: nn.Module, kind: Kind) -> tuple[nn.Module, nn.Module]:
    if kind == "seq2seq":
        scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
        return model.decoder.final_layer_norm, lambda h: model.lm_head(scale * h)
    return model.model.norm, model.score if kind == "classes" else model.lm_head


def test_second_moment_is_over_all_tokens_that_are_no_padding() -> None:
    model = toy_model(blocks=2).eval()
    rows = encoded("decoder")
    path, linear = ffn_output_maps(model)[1]
    read: list[torch.Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: read.append(args[0][0].double().detach()))
    for row in rows:
        model(input_ids=torch.tensor([row.encoded.input_ids]))
    handle.remove()
    k = torch.cat(read)
    got = second_moments(model, [path], [Pass(model, rows[:4], "decoder", 0), Pass(model, rows[4:], "decoder", 0)])[
        path
    ]
    torch.testing.assert_close(got, k.T @ k / len(k), rtol=1e-3, atol=1e-6)


def test_only_the_named_maps_change(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("classes", tmp_path)
    before = tensors(load_original(task))
    unlearned = BASELINES["mend-like"].run(task, Budget())
    maps = [f"model.layers.{block}.mlp.down_proj" for block in (1, 2, 3)]
    assert unlearned.details["maps"] == maps
    after = tensors(unlearned.model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {f"{path}.weight" for path in maps}
    assert unlearned.accounting.trainable_parameters == sum(before[f"{path}.weight"].numel() for path in maps)


def test_a_network_without_one_last_map_is_refused() -> None:
    model = toy_model(blocks=2)
    model.model.layers[0].mlp.extra = nn.Linear(96, 48)
    with pytest.raises(UnsupportedModel, match=r"layers.0.mlp: expected one linear map onto 48 features, got 2"):
        ffn_output_maps(model)
