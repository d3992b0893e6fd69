"""A model that the engine cannot serve is refused by name, before an engine is built."""

from pathlib import Path

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from unlearn_serve.errors import UnsupportedModel
from unlearn_serve.serving.config import ServingConfig
from unlearn_serve.serving.launch import serve


def test_t5_is_refused(tmp_path: Path) -> None:
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    settings = ServingConfig(store=str(tmp_path / "store"), channel="production", allow_plain=True)
    with pytest.raises(
        UnsupportedModel, match="got the encoder-decoder T5ForConditionalGeneration, which vLLM does not"
    ):
        serve(str(tmp_path), settings, [])
