# One command per wish; each installs what it needs. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz soak paper check hooks clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(INSTALLED)  ## create .venv with everything that work on the project needs

# The stamp is written last, so an interrupted installation is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[demo,plot,dev]'
	touch $@

demo: $(INSTALLED)  ## train, harden and attack a small network, and print the table (three minutes)
	$(BIN)/fitact-fx demo

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest

# Each of nine properties gets its share, one a quarter of that and two slow ones an eighth: 9 1/2 shares in all.
# The seed is printed; `make fuzz SEED=...` repeats a run.
SEED ?= $(shell $(PYTHON) -c 'import random; print(random.randrange(10**9))')
EXAMPLES ?= 10000

fuzz: $(INSTALLED)  ## try the properties on 10,000 architectures (EXAMPLES=..., SEED=...)
	@echo seed $(SEED)
	FITACT_FUZZ=$$(( ($(EXAMPLES) * 2 + 18) / 19 )) $(BIN)/python -m pytest tests/test_properties.py --hypothesis-seed=$(SEED)

# About ten minutes; `make soak KILLS=5` is a quick look.
KILLS ?= 50

soak: $(INSTALLED)  ## kill campaigns at 50 random moments, and see that nothing is lost (KILLS=..., SEED=...)
	@echo seed $(SEED)
	$(BIN)/python tools/soak.py --kills $(KILLS) --seed $(SEED)

# Trained networks and CIFAR-10 lie in DATA, as tools/paper.py says. Broken off, the same command goes on.
DATA ?= $(FITACT_DATA)
# glibc gives large blocks back to the kernel as soon as they are free, and gets them again at the next layer: a third
# of the time of ResNet-20 on a CPU went into that. Other C libraries do not read these.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456

paper: $(INSTALLED)  ## the paper's experiment, into docs/paper.md: some hours (DATA=..., ARGS="--grid full --device cuda")
	@test -n "$(DATA)" || { echo "say where the networks and CIFAR-10 are: make paper DATA=..." >&2; exit 2; }
	$(KEEP_MEMORY) $(BIN)/python tools/paper.py --data $(DATA) $(ARGS)

# Where CI is set, nothing is rewritten: code that is not formatted fails.
check: $(INSTALLED)  ## format, lint and type-check
	$(BIN)/ruff format $(if $(filter true 1,$(CI)),--check)
	$(BIN)/ruff check
	$(BIN)/mypy

hooks:  ## let git run `make check` before every commit
	git config core.hooksPath .githooks

clean:  ## remove caches and builds, keep .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
