from pathlib import Path

import pytest

from unlearn_serve.demo.checkpoint import cache_root, ensure_checkpoint


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "unlearn-serve"


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_an_unset_or_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_root() == Path.home() / ".cache" / "unlearn-serve"


@pytest.mark.model
def test_the_checkpoint_is_made_once_and_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = ensure_checkpoint()
    made = (checkpoint / "model.safetensors").stat().st_mtime_ns
    assert ensure_checkpoint() == checkpoint
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == made

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
