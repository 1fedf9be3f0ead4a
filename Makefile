# SPDX-License-Identifier: GPL-2.0-or-later
# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
pip = $(1)/bin/python -m pip --quiet --disable-pip-version-check
PIP := $(call pip,$(VENV))
# UNLOCKED=1 develops with the newest packages that pyproject.toml admits, instead of those in requirements/.
UNLOCKED ?=
# The interpreter's own pip may be older than dependency groups.
NEW_PIP := 'pip>=25.1'

.PHONY: demo test test-wheel lint audit types docs man answers lab survey judge bench fuzz dist bundle verifier lock clean

demo: $(VENV)/ready
	$(BIN)/hibernaut demo

test: $(VENV)/ready-dev
	$(BIN)/python -m pytest -n auto --dist worksteal

# The same tests on an installed wheel, of any interpreter: make test-wheel PYTHON=python3.14. WHEEL names one that is
# built already.
WHEEL ?=
WHEEL_VENV := build/wheel-venv
test-wheel: $(if $(WHEEL),,dist)
	rm -rf $(WHEEL_VENV)
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(call pip,$(WHEEL_VENV)) install --require-hashes -r requirements/dev.txt
	$(call pip,$(WHEEL_VENV)) install --no-deps $(or $(WHEEL),dist/*.whl)
	@$(call lzo,$(WHEEL_VENV))
	HIBERNAUT_WHEEL=required $(WHEEL_VENV)/bin/python -m pytest -n auto --dist worksteal

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What is dangerous in our code, and what is known to be vulnerable in the packages of the lock. The latter asks a service
# on the network and is skipped where that does not answer; HIBERNAUT_AUDIT=required makes that a failure.
audit: $(VENV)/ready-dev
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src packages
	$(BIN)/python packages/audit.py requirements/*.txt

types: $(VENV)/ready-dev
	$(BIN)/mypy

# The documentation site, in build/docs; a warning is an error, a broken link is a warning.
docs: $(VENV)/ready-dev
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/docs

# Manual pages, in build/man: `man -l build/man/hibernaut.1`. Their date is that of the last commit.
MAN_DATE ?= $(shell git log -1 --format=%cs 2>/dev/null || date -u -r CHANGELOG.md +%F)
man: $(VENV)/ready-dev
	$(BIN)/python docs/man_pages.py build/man $(MAN_DATE)

# Every run of every study; the page and the runs that it names are written anew.
answers: $(VENV)/ready
	$(BIN)/hibernaut answers --write docs/answers.md

# Every case on every kernel, under QEMU; the table is kept. `hibernaut lab doctor` says what that needs.
lab: $(VENV)/ready-dev
	$(BIN)/hibernaut lab prove --write docs/support.md

# What each of the laboratory's kernels takes out of its direct map.
survey: $(VENV)/ready-dev
	$(BIN)/hibernaut lab survey --write docs/survey.md

# Debian's kernels, and kernels built from source as they are and with each cure, judged. Builds take minutes each; a
# kernel that is not cured ends with 1, one that cannot be judged with 125.
JUDGED_LINES := 5.10 6.1 6.12 6.18 7.2 7.3
BUILT_LINES := 6.1 6.12 7.3
WRONG_CURES := no-flush no-null-check copy-skipped slot-never-cleared frame-of-entry still-unmaps
OTHER_CURES := remap-whole reserved-tables
judge: $(VENV)/ready-dev
	for line in $(JUDGED_LINES); do \
		$(BIN)/hibernaut lab judge --kernel $$line --name "$$line Debian" --write docs/judged.md --quiet; \
		test $$? -le 125 || exit 1; \
	done
	for line in $(BUILT_LINES); do for cure in stock fixmap $(WRONG_CURES) $(OTHER_CURES); do \
		tree=$$($(BIN)/hibernaut lab build --source $$line --cure $$cure) || exit 1; \
		$(BIN)/hibernaut lab judge --tree $$tree --name "$$line $$cure" --write docs/judged.md --quiet; \
		test $$? -le 125 || exit 1; \
	done; done

bench: $(VENV)/ready-dev
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/large_images.py --gib 4 16
	$(BIN)/python benchmarks/page_tables.py
	$(BIN)/python benchmarks/machine.py
	$(BIN)/python benchmarks/explore.py
	$(BIN)/python benchmarks/volumes.py
	$(BIN)/python benchmarks/mount.py
	$(BIN)/python benchmarks/machine_inside.py
	$(BIN)/python benchmarks/seals.py
	$(BIN)/python benchmarks/start.py

# Readers under fire: mutated files for each reader, guided by coverage where atheris is installed. SECONDS for each of
# TARGETS (default: all); what is found, and what reaches new code, is left in build/fuzz. RECORD=1 adds the executions to
# tests/fuzz/executions.jsonl.
TARGETS ?=
SECONDS ?= 60
RECORD ?=
fuzz: $(VENV)/ready-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(if $(RECORD),--record) $(TARGETS)

# The source distribution, and the wheel built from it.
dist: $(VENV)/ready-dev
	rm -rf dist
	$(BIN)/uv build --quiet --python $(BIN)/python

# One file with hibernaut and all that it needs, for a rescue system whose python3 is one of these (Debian 12 and 13).
BUNDLE_PYTHONS := 3.11 3.13
bundle: dist
	$(BIN)/python packages/bundle/make.py dist/*.whl build/hibernaut.pyz $(BUNDLE_PYTHONS)

# One file with the verifier of sealed images, for an initramfs: it needs Python's standard library alone.
verifier: | $(VENV)/made
	$(BIN)/python packages/verifier/make_verifier.py build/hibernaut-verify.pyz

# The newest packages that pyproject.toml admits, for every Python that it names, with the digests of their files.
# A lock takes the place of the old one when it is whole, since `make` installs from whichever is newer than a marker.
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--upgrade --custom-compile-command 'make lock' --output-file build/lock.txt
KEEP_LOCK = sync build/lock.txt && mv build/lock.txt
lock: $(VENV)/ready-dev
	mkdir -p build
	rm -f build/lock.txt
	$(UV_COMPILE) pyproject.toml --extra lab --extra disk --extra dask --extra mount --extra report --extra seal --extra volatility --group dev
	$(KEEP_LOCK) requirements/dev.txt
	$(UV_COMPILE) pyproject.toml --extra lab --extra disk --extra mount --constraint requirements/dev.txt
	$(KEEP_LOCK) requirements/bundle.txt
	$(UV_COMPILE) --group lzo
	$(KEEP_LOCK) requirements/lzo.txt
	$(UV_COMPILE) --group fuzz
	$(KEEP_LOCK) requirements/fuzz.txt

# A marker is made once all that it stands for is on the disk: after a loss of power, a marker without its files would
# be taken for a whole environment.
mark = sync -f $(VENV) && touch $@

# What a user gets: the newest packages that pyproject.toml admits.
$(VENV)/ready: pyproject.toml $(VENV)/made
	$(PIP) install -e .
	@$(call lzo,$(VENV))
	$(mark)

$(VENV)/ready-dev: pyproject.toml requirements/dev.txt requirements/lzo.txt $(VENV)/made
ifdef UNLOCKED
	$(PIP) install -e '.[lab,disk,dask,mount,report,seal]' --group dev
else
	$(PIP) install --require-hashes -r requirements/dev.txt
	$(PIP) install --no-deps -e .
endif
	@$(call lzo,$(VENV))
	$(mark)

$(VENV)/ready-fuzz: requirements/fuzz.txt $(VENV)/made | $(VENV)/ready-dev
	$(PIP) install --require-hashes --only-binary :all: -r requirements/fuzz.txt || echo "atheris has no wheel for \
	this Python: mutations are made without coverage"
	$(mark)

# python-lzo has no wheels for Linux, and is only used where the system's liblzo2 is not found; without either,
# lzallright (a dependency) does its work, and compresses slowly.
lzo = $(call pip,$(1)) install --require-hashes -r requirements/lzo.txt >/dev/null 2>&1 || echo "python-lzo was not \
	built (it needs a C compiler and liblzo2's headers, Debian: liblzo2-dev): without the system's liblzo2 (liblzo2-2), \
	LZO goes through lzallright, which compresses slowly"

# An environment without this marker was interrupted while it was made, or is of an older Makefile.
$(VENV)/made:
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade $(NEW_PIP)
	$(mark)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
