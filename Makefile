# Everything runs in .venv, which `make setup` builds from requirements.txt.
# PYTHON names the interpreter to build it from: make setup PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Start-up takes three times as long where Python may not keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup repro repair test test-all lint sweep compare replay promote report ui audit bench verify-exact lock

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1|\2/p' Makefile | column -t -s '|'

# The stamp holds what the environment was built from: while that is unchanged,
# set-up is one comparison. A moved folder is rebuilt, as scripts hold its path.
STAMP := .venv/built-from
SOURCES := { pwd; $(PYTHON) --version; cat requirements.txt; }
setup:  ## build .venv from requirements.txt (nothing to do while the lock is the same)
	@$(SOURCES) | cmp -s - $(STAMP) || $(MAKE) --no-print-directory environment

.PHONY: environment
environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: $(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { \
	  echo 'error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)' >&2; exit 1; }
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.txt
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements.txt
	@$(SOURCES) > $(STAMP)

repro: setup  ## run the pipeline: data, training, evaluation, MLflow runs
	@python -m tools.repro

repair: setup  ## remove outputs and cached objects that a disk or a kill has damaged
	@python -m tools.repair --damaged

TESTS ?= exact tests
test: setup  ## test everything on real parts, in minutes; TESTS=… names a part
	@pytest $(PARALLEL) $(TESTS)

test-all: setup  ## the same with every case, which takes longer; writes docs/reliability.md
	@pytest $(PARALLEL) --all $(TESTS)

# The tests of a file share what they have set up, so they stay on one core.
PARALLEL := --numprocesses=auto --dist=loadscope --no-loadscope-reorder

lint: setup  ## check style and types
	@ruff check
	@ruff format --check
	@mypy

sweep: setup  ## run many experiments at once: make sweep ARGS="-S lr=0.03,0.1 -S 'seed=range(1,6)'"
	@python -m tools.sweep $(ARGS)

compare: setup  ## print the recorded experiments as one table, best validation first
	@python -m tools.compare

replay: setup  ## run a recorded run again and compare every byte: make replay RUN=<id>
	@test -n '$(RUN)' || { echo 'error: name a run: make replay RUN=<id, or its beginning>' >&2; exit 2; }
	@python -m tools.replay '$(RUN)'

promote: setup  ## make a run's model the champion in MLflow, if it replays: make promote RUN=<id>
	@test -n '$(RUN)' || { echo 'error: name a run: make promote RUN=<id, or its beginning>' >&2; exit 2; }
	@python -m tools.promote '$(RUN)'

BASE ?= main
report: setup  ## say in Markdown what the results differ in from main (or BASE=…)
	@python -m tools.report '$(BASE)'

PORT ?= 5000
ui: setup  ## look at the runs in MLflow, at http://127.0.0.1:5000 (or PORT=…)
	@python -m tools.ui --port $(PORT)

audit: setup  ## look up known vulnerabilities of the locked packages
	@pip-audit --requirement requirements.txt --require-hashes --disable-pip --strict --progress-spinner off

bench: setup  ## measure what the README quotes
	@python -m benchmarks.speed

verify-exact: setup  ## retrain as other machines would, and compare with dvc.lock
	@python -m benchmarks.environments

lock: setup  ## compile requirements.in into requirements.txt
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	  --custom-compile-command 'make lock' requirements.in --output-file requirements.txt
