"""What a sketched Gram costs in accuracy: RegMean with sketches against RegMean with exact Grams, on real adapters.

    python -m benchmarks.gram_sketch ADAPTER ADAPTER ...

The adapters must have exact Grams. Each Gram of hidden states is sketched from rows that have it as their Gram, turned
by a random rotation, so that they come in no favourable order. Writes benchmarks/results/gram_sketch.json. By number of
rows, over the sites, median and worst of:
    weights  |W' - W|_F / |W|_F of W_down, W with exact Grams
    inputs   the same on the inputs that the parents saw: sqrt(tr((W' - W) G (W' - W)^T) / tr(W G W^T)), G their sum
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe
from unlearn_serve.format import read_adapter_dir
from unlearn_serve.fusion import GRAMS_NAME, GramFile, GramSketcher, RegMean, regmean
from unlearn_serve.fusion.packed import packed_length

RESULT = Path(__file__).parent / "results" / "gram_sketch.json"
ROWS = (16, 32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", nargs="+", type=Path)
    paths = parser.parse_args().adapters
    read = [read_adapter_dir(path) for path in paths]
    manifest = read[0][0]
    d = manifest.base_model.hidden_size
    grams = [
        GramFile(path / GRAMS_NAME, one.adapter.sites, rank=one.adapter.rank, hidden_size=d)
        for path, (one, _) in zip(paths, read, strict=True)
    ]
    errors: dict[int, dict[str, list[float]]] = {rows: {"weights": [], "inputs": []} for rows in ROWS if rows < d}
    for block in sorted(manifest.adapter.sites):
        weights = [tensors.w_down[block] for _, tensors in read]
        exact = [one[block].down for one in grams]
        expected = regmean(weights, exact, RegMean())
        total = sum(gram.double() / gram.diagonal().sum() for gram in exact)
        rows_of = [square_root(gram, seed=block) for gram in exact]
        for rows, found in errors.items():
            got = regmean(weights, [sketched(x, rows) for x in rows_of], RegMean())
            gap = got - expected
            found["weights"].append((gap.norm() / expected.norm()).item())
            found["inputs"].append((energy(gap, total) / energy(expected, total)) ** 0.5)
    table = {
        str(rows): {
            "of the packed Gram's bytes": round((rows + 1) * d / packed_length(d), 3),
            **{name: {"median": round(median(v), 4), "worst": round(max(v), 4)} for name, v in found.items()},
        }
        for rows, found in errors.items()
    }
    described = {
        "model": manifest.base_model.name,
        "hidden size": d,
        "sites": len(manifest.adapter.sites),
        "adapters": [
            {"deletion ids": m.deletion_ids, "forgotten rows": m.provenance.data["forget"].rows} for m, _ in read
        ],
        **describe(),
        "rows": table,
    }
    RESULT.write_text(json.dumps(described, indent=2) + "\n")
    print(RESULT.read_text())


def square_root(gram: Tensor, *, seed: int) -> Tensor:
    """Rows [d, d], turned at random, whose Gram is `gram`."""
    values, basis = torch.linalg.eigh(gram.double())
    drawn = torch.randn(gram.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows: Tensor = torch.linalg.qr(drawn).Q @ (values.clamp_min(0).sqrt()[:, None] * basis.T)
    return rows


def sketched(rows: Tensor, kept: int) -> Tensor:
    sketcher = GramSketcher(kept, rows.shape[1])
    sketcher.add(rows)
    return sketcher.result().dense()


def energy(weight: Tensor, gram: Tensor) -> float:
    return torch.trace(weight @ gram @ weight.T).item()


def median(values: list[float]) -> float:
    return torch.tensor(values).median().item()


if __name__ == "__main__":
    main()
