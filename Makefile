# First contact: `make demo` and `make test`. Both create .venv once and reuse it until requirements change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: demo test kills lint clean-demo help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	    || { echo "error: Python 3.10 to 3.13 is needed; name one with make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

demo: $(INSTALLED)  ## both competitions end to end on rendered images: two checked submissions, two reports
	$(LAUNCH) scripts/train_fold.py --fold all --resume
	$(LAUNCH) scripts/train_fold.py --config configs/demo_cnmc.yaml --fold all --resume
	$(BIN)/python scripts/report.py --run demo
	$(BIN)/python scripts/report.py --run demo_cnmc
	@echo
	@$(BIN)/python scripts/blend.py --run demo --run demo_cnmc

test: $(INSTALLED)  ## the whole test suite, on two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

kills: $(INSTALLED)  ## trainings killed at random and resumed, 40 times on one process and 20 on two: the same bits
	LEUKOFOLD_KILLS=40 $(BIN)/python -m pytest -n 2 tests/test_resume.py

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean-demo:  ## forget the demo's images, runs and submissions, so that `make demo` starts afresh
	rm -rf input/demo oof/demo oof/demo_cnmc submissions/wbcbench/demo.* submissions/cnmc/demo_cnmc.*
