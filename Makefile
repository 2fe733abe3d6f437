# `make demo` and `make test` work on a bare machine with Python >= 3.10 and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: on small matrices two processes beat two threads.
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test test-all check bench docs
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python -m torch.distributed.run --standalone --nproc_per_node 2 -m thalweg train diffusion-nft \
	    run.max_seconds=360 --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 10 -m "not slow and not gpu"

test-all: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: install
	$(BIN)/python benchmarks/overhead.py

docs: install
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict
