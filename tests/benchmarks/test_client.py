"""vLLM's benchmark client, as it is installed: the arguments we give it, and the figures we read."""

import inspect

import pytest
import vllm.benchmarks.serve as client

from benchmarks.load import LOADS, _requests
from benchmarks.vllm_bench import RESULT_KEYS, parse_serve


def test_the_client_takes_our_arguments(tmp_path_factory: pytest.TempPathFactory) -> None:
    prompts = tmp_path_factory.mktemp("client") / "prompts.json"
    given = parse_serve(
        [
            *("--backend", "openai", "--base-url", "http://127.0.0.1:1", "--endpoint", "/v1/completions"),
            *("--model", "base", "--tokenizer", "t", "--temperature", "0", "--ignore-eos"),
            *("--dataset-name", "sharegpt", "--disable-shuffle", "--disable-tqdm", "--no-oversample"),
            *("--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,99", "--max-concurrency", "8"),
            *("--lora-modules", "base@1", "base@2", "--lora-assignment", "round-robin"),
            *_requests(prompts, 16, 96),
        ]
    )
    assert (given.num_prompts, given.sharegpt_output_len, given.lora_modules) == (16, 96, ["base@1", "base@2"])
    assert given.ready_check_timeout_sec == 0, "a first request of the client's own would warm the prefix cache"


def test_the_client_reports_what_we_read() -> None:
    source = inspect.getsource(client)
    percentiles = {"p50_ttft_ms", "p50_itl_ms", "p99_itl_ms"}
    for key in set(RESULT_KEYS) - percentiles:
        assert f'"{key}"' in source, f"vllm.benchmarks.serve no longer reports {key}"
    assert 'result[f"p{p_word}_{metric_attribute_name}_ms"]' in source


def test_every_load_fits_the_servers_context() -> None:
    # 1024 is both the servers' --max-model-len and the client's limit for a prompt of this data set.
    assert all(load.input_tokens + load.output_tokens <= 1024 for load in LOADS.values())
