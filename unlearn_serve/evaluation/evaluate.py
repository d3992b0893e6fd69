"""Evaluate a base model before and after an adapter, or a served model, on named sets."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from unlearn_serve.data import Encoded, Example, data_ref, encode, read_examples
from unlearn_serve.data.forms import encode_as, form_of
from unlearn_serve.errors import DataError
from unlearn_serve.evaluation.endpoint import Endpoint
from unlearn_serve.evaluation.measures import measure
from unlearn_serve.evaluation.opening import open_config, open_model, open_tokenizer, source_of
from unlearn_serve.evaluation.readings import Probe, Source, probe_with
from unlearn_serve.evaluation.record import RECORD_NAME, EvaluatedSet, Phase, Results, read_reference, write_record
from unlearn_serve.evaluation.scores import Scores, score
from unlearn_serve.format import (
    Manifest,
    fingerprint_base_model,
    read_adapter_dir,
    require_same_base,
    with_evaluation,
    write_manifest,
)
from unlearn_serve.format.fields import SET_NAME_PATTERN
from unlearn_serve.layers import load_adapter


def evaluate(
    model_dir: Path,
    adapter_dir: Path | None,
    sets: Mapping[str, Path],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    max_length: int = 2048,
    device: str | None = None,
    dtype: str = "auto",
    reference: Path | None = None,
    seed: int = 0,
    record: bool = True,
) -> Results:
    """Take every measure of docs/evaluation.md that the sets allow.

    "before" is the plain model (layers switched off, bit for bit the base), "after" is with the adapter; without an
    adapter there is no "after".

    Args:
        model_dir: folder of the base model's checkpoint.
        adapter_dir: adapter directory, or None for the plain model alone.
        sets: JSONL files by set name; forget, retain, holdout and general have their part in the measures.
        max_new_tokens: longest answer to generate.
        batch_size: examples in one pass.
        max_length: most tokens of an example.
        device: torch device; None takes an accelerator where there is one.
        dtype: of the base model's weights; "auto" takes the checkpoint's.
        reference: evaluation.json of a model that never saw the forget set, for forget quality and privacy leak.
        seed: of the confidence intervals.
        record: write the scores into the adapter's manifest.json, which gives it another digest, and all answers into
            evaluation.json beside it, which stays local.

    Raises:
        DataError: no sets, a bad set name, or a bad data file; all before the model is loaded.
        BaseModelMismatch: the adapter belongs to another base model.
        FormatError: the adapter directory is not valid.
        UnsupportedModel: `model_dir` is no checkpoint of a decoder of attention layers, an encoder-decoder or a
            sequence-classification head.
    """
    examples = _read_sets(sets)
    compared = None if reference is None else read_reference(reference)
    manifest = None if adapter_dir is None else _matching_manifest(model_dir, adapter_dir)
    config, tokenizer = open_config(model_dir), open_tokenizer(model_dir)
    form = form_of(config)
    asked = _Asked.of(examples, lambda row: encode_as(form, row, tokenizer, max_length, config), max_new_tokens)
    model = open_model(model_dir, form, dtype=dtype, device=device)
    if adapter_dir is not None:
        model = load_adapter(model, adapter_dir)
    source = source_of(form, model.eval(), tokenizer, batch_size=batch_size)

    scores: dict[Phase, dict[str, list[Scores]]] = {}
    with nullcontext() if adapter_dir is None else model.disable_adapter():
        scores["before"] = asked.put_to(source, "before")
    if adapter_dir is not None:
        scores["after"] = asked.put_to(source, "after")
    results = Results(
        model=model_dir.resolve().name,
        release=None,
        max_new_tokens=max_new_tokens,
        seed=seed,
        sets=_evaluated(sets, examples, scores),
        measures={phase: measure(by_set, seed=seed, reference=compared) for phase, by_set in scores.items()},
    )
    if adapter_dir is not None and manifest is not None and record:
        write_record(adapter_dir / RECORD_NAME, results)
        write_manifest(adapter_dir, with_evaluation(manifest, results.evaluation()))
    return results


def evaluate_served(
    url: str,
    served_model: str | None,
    tokenizer_dir: Path,
    sets: Mapping[str, Path],
    *,
    max_new_tokens: int = 32,
    max_length: int = 2048,
    concurrency: int = 16,
    reference: Path | None = None,
    seed: int = 0,
) -> Results:
    """Take the same measures of what a server answers with now, as phase "live".

    Min-K++ is left out: it needs the whole distribution, which no server gives.

    Args:
        url: base URL of a server with vLLM's `prompt_logprobs` on /v1/completions.
        served_model: the model's name there; None takes the only one there is.
        tokenizer_dir: folder of the checkpoint that is served: its tokenizer and chat template are used here.
        sets: as for `evaluate`.
        max_new_tokens: as for `evaluate`.
        max_length: as for `evaluate`.
        concurrency: requests in flight.
        reference: as for `evaluate`.
        seed: as for `evaluate`.

    Raises:
        DataError: as for `evaluate`.
        UnsupportedModel: `tokenizer_dir` has no tokenizer that transformers can load.
        ServingError: no answer, no such model, no `prompt_logprobs`, or another release went live meanwhile.
    """
    examples = _read_sets(sets)
    compared = None if reference is None else read_reference(reference)
    tokenizer = open_tokenizer(tokenizer_dir)
    asked = _Asked.of(examples, lambda row: encode(row, tokenizer, max_length), max_new_tokens)
    with Endpoint.connect(url, served_model=served_model, concurrency=concurrency) as endpoint:
        scores: dict[Phase, dict[str, list[Scores]]] = {"live": asked.put_to(endpoint, "live")}
        return Results(
            model=f"{endpoint.served_model} at {url}",
            release=endpoint.release,
            max_new_tokens=max_new_tokens,
            seed=seed,
            sets=_evaluated(sets, examples, scores),
            measures={"live": measure(scores["live"], seed=seed, reference=compared)},
        )


@dataclass(frozen=True)
class _Asked:
    """What is asked of each source: examples by set, and the same as token ids."""

    examples: Mapping[str, list[Example]]
    probes: Mapping[str, list[Probe]]
    max_new_tokens: int

    @classmethod
    def of(
        cls, examples: Mapping[str, list[Example]], encode_one: Callable[[Example], Encoded], max_new_tokens: int
    ) -> "_Asked":
        probes = {name: [probe_with(row, encode_one) for row in rows] for name, rows in examples.items()}
        return cls(examples, probes, max_new_tokens)

    def put_to(self, source: Source, phase: str) -> dict[str, list[Scores]]:
        """Read and score every set; all in one go, so that rows of like length share a pass whatever their set."""
        rows = [row for examples in self.examples.values() for row in examples]
        probes = [probe for probes in self.probes.values() for probe in probes]
        with _progress(phase, len(probes)) as advance:
            readings = source.read(probes, max_new_tokens=self.max_new_tokens, advance=advance)
        scored = iter([score(*pair) for pair in zip(rows, readings, strict=True)])
        return {name: list(islice(scored, len(examples))) for name, examples in self.examples.items()}


def _evaluated(
    paths: Mapping[str, Path],
    examples: Mapping[str, list[Example]],
    scores: Mapping[Phase, Mapping[str, list[Scores]]],
) -> dict[str, EvaluatedSet]:
    return {
        name: EvaluatedSet(
            data=data_ref(paths[name]),
            examples=rows,
            scores={phase: by_set[name] for phase, by_set in scores.items()},
        )
        for name, rows in examples.items()
    }


def _read_sets(sets: Mapping[str, Path]) -> dict[str, list[Example]]:
    if not sets:
        raise DataError("expected at least one set to evaluate on, got none; give for example --forget FILE")
    for name in sets:
        if re.fullmatch(SET_NAME_PATTERN[1:-1], name) is None:
            raise DataError(f"set {name!r}: expected a name of 1 to 32 of a-z 0-9 _ - that starts with a letter")
    return {name: read_examples(path) for name, path in sets.items()}


def _matching_manifest(model_dir: Path, adapter_dir: Path) -> Manifest:
    manifest, _ = read_adapter_dir(adapter_dir)
    require_same_base(manifest.base_model, fingerprint_base_model(model_dir))
    return manifest


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
