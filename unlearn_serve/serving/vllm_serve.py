"""`python -m unlearn_serve.serving.vllm_serve ARGS` is `vllm serve ARGS`, on every wheel of vLLM."""

import sys

from unlearn_serve.serving.vllm_internals import run_vllm_serve

if __name__ == "__main__":
    run_vllm_serve(sys.argv[1:])
