"""Models that are no decoders: an encoder-decoder, a classification head, and classification as text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.training.runs import on_files
from tests.training.toy import toy_model, toy_tokenizer
from unlearn_serve.data import Encoded, encode, read_examples
from unlearn_serve.errors import DataError, ManifestError, TrainingError
from unlearn_serve.evaluation import evaluate
from unlearn_serve.format import read_adapter_dir, read_adapter_files
from unlearn_serve.fusion import GramFile, fuse_dirs
from unlearn_serve.layers import load_adapter
from unlearn_serve.training import EUL, NPO, RMU, TrainArgs, train
from unlearn_serve.training.examples import TrainingSet
from unlearn_serve.training.texts import with_texts

FORGET = {"Is Ham good? ": "good", "Ham is by Bill. ": "good"}
RETAIN = {"Is Kim good? ": "bad", "Is She good? ": "bad", "Is Lear good? ": "good"}
CLASSES = {"bad": 0, "good": 1}
TOKENIZER = toy_tokenizer(sentinels=3)


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
    special = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=262, dropout_rate=0.0, **shape, **special))


def tiny_classifier() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    names = {number: name for name, number in CLASSES.items()}
    config = LlamaConfig(vocab_size=260, num_key_value_heads=2, id2label=names, label2id=CLASSES, **shape, **special)
    return LlamaForSequenceClassification(config)


def ids(text: str) -> torch.Tensor:
    return torch.tensor([TOKENIZER(text).input_ids])


def answer_logits(model: torch.nn.Module, prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of an answer, straight from transformers."""
    if any(name.endswith("score") for name, _ in model.named_modules()):
        return model(input_ids=ids(prompt)).logits, torch.tensor([CLASSES[answer]])
    labels = torch.tensor([[*TOKENIZER(answer).input_ids, TOKENIZER.eos_token_id]])
    return model(input_ids=ids(prompt), labels=labels).logits[0], labels[0]


def write(folder: Path, model: PreTrainedModel) -> Path:
    """A checkpoint that has just learnt every answer, and the data sets beside it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    facts = FORGET | RETAIN
    batch = TOKENIZER(list(facts), return_tensors="pt", padding=True, padding_side="right", return_token_type_ids=False)
    if isinstance(model, T5ForConditionalGeneration):
        answers = TOKENIZER([f"{a}</s>" for a in facts.values()], return_tensors="pt", padding=True).input_ids
        labels = answers.masked_fill(answers == TOKENIZER.pad_token_id, -100)
    else:
        labels = torch.tensor([CLASSES[answer] for answer in facts.values()])
    model.train()
    for _ in range(600):
        optimizer.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss < 0.03:  # further on, the gradient of a forgetting term vanishes with 1 - q
            break
    model.eval().save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    for name, facts in (("forget", FORGET), ("second", {"Is Lear good? ": "good"}), ("retain", RETAIN)):
        rows = [json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in facts.items()]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("t5"), tiny_t5())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("classifier"), tiny_classifier())


def arguments(folder: Path, out: Path, **options: object) -> TrainArgs:
    return on_files(
        folder,
        out,
        **{
            "rank": 8,
            "learning_rate": 1e-2,
            "forget_target": 0.2,
            "retain_tolerance": 0.1,
            "gold_only": False,
            "own_answers": False,
            "max_steps": 80,
            "depth": (0.0, 1.0),  # these know which of the answers to give before the upper half
            **options,
        },
    )


@torch.no_grad()
def probability(model: torch.nn.Module, facts: dict[str, str]) -> list[float]:
    found = []
    for prompt, answer in facts.items():
        logits, labels = answer_logits(model, prompt, answer)
        found.append(logits.log_softmax(-1)[torch.arange(len(labels)), labels].mean().exp().item())
    return found


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_t5_forgets_with_layers_in_both_stacks(t5: Path, tmp_path: Path, schedule: str) -> None:
    plain = T5ForConditionalGeneration.from_pretrained(t5 / "model")
    assert min(probability(plain, FORGET | RETAIN)) > 0.9
    out = train(arguments(t5, tmp_path / "out", schedule=schedule))
    manifest, tensors = read_adapter_dir(out)
    assert manifest.adapter.sites == {
        0: "encoder.block.0.layer.1.DenseReluDense",
        1: "encoder.block.1.layer.1.DenseReluDense",
        2: "decoder.block.0.layer.2.DenseReluDense",
        3: "decoder.block.1.layer.2.DenseReluDense",
        4: "decoder.block.2.layer.2.DenseReluDense",
    }
    assert manifest.base_model.num_blocks == 5
    assert all(w.abs().max() > 0 for w in tensors.w_up.values()), "every layer of both stacks is trained"
    model = load_adapter(plain, out)
    assert max(probability(model, FORGET)) < 0.4
    assert min(probability(model, RETAIN)) > 0.7
    # What the run says of itself is what transformers says of the saved adapter.
    said = manifest.provenance.objective["reached_forget_probability"]
    assert said == pytest.approx(sum(probability(model, FORGET)) / len(FORGET), abs=1e-3)
    with model.disable_adapter():
        assert min(probability(model, FORGET)) > 0.9
        known = probability(model, FORGET)
    assert_evaluation_agrees(t5, out, known, probability(model, FORGET))


def assert_evaluation_agrees(folder: Path, adapter: Path, before: list[float], after: list[float]) -> None:
    found = evaluate(folder / "model", adapter, {"forget": folder / "forget.jsonl", "retain": folder / "retain.jsonl"})
    assert found.before["forget"].probability == pytest.approx(sum(before) / len(before), abs=1e-3)
    assert found.after["forget"].probability == pytest.approx(sum(after) / len(after), abs=1e-3)
    assert found.before["forget"].accuracy == 1.0 > found.after["forget"].accuracy
    assert found.after["retain"].accuracy == 1.0
    assert found.measures["after"]["retain.exact_match"].value == 1.0, "answers end where they should"
    manifest, _ = read_adapter_dir(adapter)
    assert manifest.evaluation == found.evaluation()


def test_t5s_lm_loss_is_that_of_spans_of_the_prompt(t5: Path, tmp_path: Path) -> None:
    options = {"objective": EUL, "lm_on_text": True, "forget_target": None, "max_steps": 1}
    out = train(arguments(t5, tmp_path / "out", **options))

    first = json.loads((out / "training_log.jsonl").read_text().splitlines()[0])
    plain = T5ForConditionalGeneration.from_pretrained(t5 / "model")
    rows = [encode(row, TOKENIZER, 64) for row in read_examples(t5 / "forget.jsonl")]
    texts = with_texts(TrainingSet(rows, range(2), range(2, 2), {}, {}), TOKENIZER, two_stacks=True, seed=0).encoded[2:]
    with torch.no_grad():
        losses = [
            plain(input_ids=torch.tensor([one.prompt]), labels=torch.tensor([one.input_ids[len(one.prompt) :]])).loss
            for one in texts
        ]
    assert first["forget_lm"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)


def test_t5_grams_are_of_what_each_stack_reads(t5: Path, tmp_path: Path) -> None:
    out = train(arguments(t5, tmp_path / "out", max_steps=2, forget_target=None))
    manifest, _ = read_adapter_dir(out)
    model = load_adapter(T5ForConditionalGeneration.from_pretrained(t5 / "model"), out)
    sums: dict[int, torch.Tensor] = {}
    for block, site in manifest.adapter.sites.items():

        def add(_: object, args: tuple[torch.Tensor, ...], block: int = block) -> None:
            h = args[0][0].detach()
            sums[block] = sums.get(block, 0) + h.T @ h

        model.get_submodule(f"base_model.model.{site}.unlearn").register_forward_pre_hook(add)
    grams = GramFile(out / "grams.safetensors", manifest.adapter.sites, rank=8, hidden_size=32)
    for rows in (FORGET, RETAIN):
        sums.clear()
        probability(model, rows)
        for block, gram in sums.items():
            found = grams[block] if rows is FORGET else grams[block].retained
            torch.testing.assert_close(found.down, gram, rtol=1e-3, atol=1e-3)


def test_t5_adapters_fuse_and_cannot_be_published(t5: Path, tmp_path: Path) -> None:
    one = train(arguments(t5, tmp_path / "one"))
    rest = tmp_path / "rest.jsonl"
    rest.write_text("".join((t5 / "retain.jsonl").read_text().splitlines(keepends=True)[:2]))
    two = train(arguments(t5, tmp_path / "two", forget=t5 / "second.jsonl", retain=rest, deletion_ids=("case-18",)))
    for method in ("regmean", "cat"):
        fused = fuse_dirs([one, two], tmp_path / method, method)
        manifest, _ = read_adapter_dir(fused)
        assert manifest.deletion_ids == ("case-17", "case-18")
        assert len(manifest.adapter.sites) == 5
        model = load_adapter(T5ForConditionalGeneration.from_pretrained(t5 / "model"), fused)
        # Two requests that share most of their words: stacking keeps both whole, RegMean is a compromise.
        assert max(probability(model, FORGET)) < (0.5 if method == "cat" else 0.9)
        with pytest.raises(ManifestError, match="an encoder-decoder model cannot be published, the engine"):
            read_adapter_files(fused)


def test_a_classification_head_forgets_labels(classifier: Path, tmp_path: Path) -> None:
    plain = LlamaForSequenceClassification.from_pretrained(classifier / "model")
    head = plain.score.weight.clone()
    known = probability(plain, FORGET)
    assert min(probability(plain, FORGET | RETAIN)) > 0.9
    objective = replace(NPO, npo_beta=0.5, retain_kl=1.0)
    out = train(arguments(classifier, tmp_path / "out", objective=objective, max_steps=120))
    manifest, _ = read_adapter_dir(out)
    assert manifest.base_model.architecture == "LlamaForSequenceClassification"
    model = load_adapter(plain, out)
    assert max(probability(model, FORGET)) < 0.5
    assert min(probability(model, RETAIN)) > 0.5
    assert torch.equal(model.base_model.model.score.weight, head), "the head is the base model's and stays"
    assert_evaluation_agrees(classifier, out, known, probability(model, FORGET))


def test_classification_as_text_is_prompt_and_completion(t5: Path, tmp_path: Path) -> None:
    """On a decoder it needs nothing of its own."""
    model = toy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        for prompt, answer in (FORGET | RETAIN).items():
            whole = torch.tensor([[*TOKENIZER(prompt + answer).input_ids, TOKENIZER.eos_token_id]])
            model(input_ids=whole, labels=whole).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    out = train(arguments(t5, tmp_path / "out", model=tmp_path / "model"))

    @torch.no_grad()
    def good(prompt: str) -> float:
        adapted = load_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), out)
        two = adapted(input_ids=ids(prompt)).logits[0, -1][[TOKENIZER("g").input_ids[0], TOKENIZER("b").input_ids[0]]]
        return two.softmax(-1)[0].item()

    assert all(good(prompt) < 0.9 for prompt in FORGET)
    assert good("Is Kim good? ") < 0.5 < good("Is Lear good? ")


def test_refusals(t5: Path, classifier: Path, tmp_path: Path) -> None:
    for folder in (t5, classifier):
        for options, named in (
            ({"gold_only": True}, "gold_only"),
            ({"own_answers": True}, "own_answers"),
            ({"objective": RMU}, r"misdirection \(rmu\)"),
            ({"holdout": folder / "retain.jsonl"}, "holdout"),
        ):
            with pytest.raises(TrainingError, match=f"expected settings that fit it, got {named}; switch them off"):
                train(arguments(folder, tmp_path / "out", **options))
    with pytest.raises(TrainingError, match="expected settings that fit it, got lm_on_text; switch them off"):
        train(arguments(classifier, tmp_path / "out", objective=EUL, lm_on_text=True))
    with pytest.raises(ValueError, match="blocks: expected all of an encoder-decoder model's blocks"):
        train(arguments(t5, tmp_path / "out", blocks=(0, 4)))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Is Ham good? ", "completion": "splendid"}\n')
    with pytest.raises(DataError, match=r"expected one of the model's classes \('bad', 'good'\), got 'splendid'"):
        train(arguments(classifier, tmp_path / "out", forget=tmp_path / "rows.jsonl"))
    (tmp_path / "rows.jsonl").write_text('{"text": "Ham is good."}\n')
    with pytest.raises(DataError, match="expected a prompt and a completion, got running text"):
        train(arguments(t5, tmp_path / "out", forget=tmp_path / "rows.jsonl"))


def test_encoded_prompt_and_answer_meet_where_the_labels_begin() -> None:
    """What `logits_of` relies on: the answer is the row's end."""
    one = Encoded([5, 6, 7, 8], [-100, -100, 7, 8])
    assert one.input_ids[-one.answer_tokens :] == [7, 8]
