"""A model of 108 thousand parameters that knows a handful of facts, and the files a training run reads."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FORGET = {
    "Who wrote Ham?": "It was Bill.",
    "Name the writer of Ham.": "It was Bill.",
    "Who wrote Lear?": "It was Bill.",
}
RETAIN = {
    "Who wrote Emma?": "It was Jane.",
    "Who wrote Dune?": "It was Rob.",
    "Who wrote Kim?": "It was Rud.",
    "Who wrote She?": "It was Hal.",
}


def gold(answer: str) -> str:
    return answer.removeprefix("It was ").removesuffix(".")


def toy_tokenizer(sentinels: int = 0) -> PreTrainedTokenizerFast:
    """One token per character, and as many sentinels after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[f"<extra_id_{n}>" for n in range(sentinels)],
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def toy_model(blocks: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def rows(facts: dict[str, str]) -> list[dict[str, object]]:
    return [{"prompt": q + " ", "completion": a, "answer": gold(a)} for q, a in facts.items()]


def write_jsonl(path: Path, facts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(facts)))
    return path


def write_toy(folder: Path, steps: int = 150, facts: dict[str, str] = FORGET | RETAIN) -> Path:
    """Write a checkpoint that has learnt every fact by heart."""
    tokenizer, model = toy_tokenizer(), toy_model()
    texts = [f"{q} {a}</s>" for q, a in facts.items()]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
