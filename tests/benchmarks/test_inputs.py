"""What the benchmarks serve is valid, and is the same each time it is asked for."""

import pytest

from benchmarks.inputs import RANK, Inputs
from unlearn_serve.format import read_adapter_dir

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


def test_prompts_have_exactly_the_tokens_they_say_and_no_two_runs_share_one(inputs: Inputs) -> None:
    first, second = (inputs.prompts("test", tokens=40, count=5, seed=seed) for seed in (1, 2))
    rows = [*inputs.token_ids(first), *inputs.token_ids(second)]
    assert {len(row) for row in rows} == {40}
    # A block of the prefix cache has 16 tokens or more: one that is shared would be answered from there.
    assert len({tuple(row[:16]) for row in rows}) == 10
    assert inputs.token_ids(inputs.prompts("test", tokens=40, count=5, seed=1)) == rows[:5]


def test_releases_differ_in_weights_and_none_leaves_out_what_another_covers(inputs: Inputs) -> None:
    one, two = inputs.adapter(1), inputs.adapter(2)
    (first, tensors), (second, _) = read_adapter_dir(one), read_adapter_dir(two)
    assert first.digest != second.digest
    assert first.deletion_ids == second.deletion_ids
    assert (tensors.rank, len(tensors.w_down)) == (RANK, first.base_model.num_blocks)
    covering, _ = read_adapter_dir(inputs.adapter(1, ids=10))
    assert set(covering.deletion_ids) > set(first.deletion_ids)
    # Nothing but the manifest grows with the requests covered.
    assert covering.files == first.files
    assert inputs.release(1) == inputs.release(1) == first.digest
