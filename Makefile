# Two commands set everything up on a machine that has only Python 3.11 or 3.12: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test lint format bench-gpu clean

demo: $(VENV)/.installed  ## install, then compare samplers and caches on the bundled model
	$(BIN)/dllm generate "Reverse this list: ship, boat, fish, moon, cloud, cake" --gen_length 64
	$(BIN)/dllm compare --task lists --n 64 --samplers static,threshold,factor --caches none,dual --gen_length 64 \
		--png runs/compare.png --csv runs/compare.csv

test: $(VENV)/.tested  ## install, then run every test
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.tested  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-gpu: $(VENV)/.installed  ## kernels and decoding on this machine's GPU, within 9 minutes on an H200
	$(BIN)/python scripts/bench_decode.py --shape llada-8b --out docs/benchmarks/llada-8b.json
	$(BIN)/python scripts/bench_kernels.py --out docs/benchmarks/kernels.json

format: $(VENV)/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
