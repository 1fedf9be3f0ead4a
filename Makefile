# SPDX-License-Identifier: GPL-2.0-or-later
# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test lint types answers lab bench clean

demo: $(VENV)/ready
	$(BIN)/hibernaut demo

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready-dev
	$(BIN)/mypy

# Every run of every study; the page and the runs that it names are written anew.
answers: $(VENV)/ready
	$(BIN)/hibernaut answers --write docs/answers.md

# Every case on every kernel, under QEMU; the table is kept. `hibernaut lab doctor` says what that needs.
lab: $(VENV)/ready-dev
	$(BIN)/hibernaut lab prove --write docs/support.md

bench: $(VENV)/ready-dev
	$(PIP) install -e '.[bench]'
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/page_tables.py
	$(BIN)/python benchmarks/machine.py
	$(BIN)/python benchmarks/explore.py

# python-lzo has no wheels for Linux: where it cannot be built, lzallright (a dependency) does its work, slower.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -e .
	@$(PIP) install 'python-lzo>=1.15' >/dev/null 2>&1 || echo "python-lzo was not built (it needs a C compiler and \
	liblzo2's headers, Debian: liblzo2-dev): LZO goes through lzallright, which is slower"
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) install -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
