# The commands of this repository; `make` alone lists them. A fresh machine needs Python 3.11 or later, git and make.
#
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu    takes torch, and torch alone, from that index

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

# The interpreter that the environment is made from.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
# An index of wheels to take torch from, for a CPU or a CUDA build by choice; empty takes pip's own.
TORCH_INDEX ?=
# Extras to install: `make venv EXTRAS=dev,peers` adds what the benches compare with.
EXTRAS ?= dev
# Where npm is, buf judges the protos too; `make lint NPM=` leaves it out.
NPM ?= $(shell command -v npm 2>/dev/null)
# How many seeds each simulation runs with in `make soak`.
SEEDS ?= 2000
# More for pytest: `make test ARGS="-k planner -x"`.
ARGS ?=
# How many run side by side: one more than there are cores, as half of them wait for a mesh at any moment; four at most.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((cores < 3 ? cores + 1 : 4)))
# How the tests are spread: one file at a time on each worker, in their order: sorted by the number of their tests, the
# longest would come last, and all but one would wait for it. `make test SIDE_BY_SIDE=` runs one after the other.
SIDE_BY_SIDE ?= --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Machine-readable output of `make demo` and `make bench`: JSON=1.
JSON ?=
# Which bench: `make bench NAME=hop`.
NAME ?= wire hop generate

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUF := node_modules/.bin/buf
JSON_FLAG := $(if $(JSON),--json,)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help
help:  ## list the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: venv
venv: $(INSTALLED)  ## make .venv and install everything; again only where pyproject.toml changed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no python3 on the PATH: install Python 3.11 or later, or set PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11: install a later one, or set PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make environments: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# torch goes first and alone where an index is named: nothing else is taken from there.
$(INSTALLED): pyproject.toml | $(BIN)/python
ifneq ($(strip $(TORCH_INDEX)),)
	$(PIP) install --quiet --index-url "$(TORCH_INDEX)" \
		"$$($(BIN)/python -c 'import re, pathlib; print(re.search(r"torch==[^\"]+", pathlib.Path("pyproject.toml").read_text())[0])')"
endif
	@echo "installing (torch and all: a few minutes the first time)"
	@PYTHONWARNINGS=ignore $(PIP) install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

# No lock file: it would hold only the platforms of the machine that wrote it; the version is pinned exactly.
$(BUF): package.json
	$(NPM) install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error
	@touch $@

.PHONY: lint
lint: $(INSTALLED) $(if $(NPM),$(BUF),)  ## ruff, mypy --strict, the protos' style and stability, fresh stubs, Kubernetes manifests
	$(BIN)/ruff check --output-format concise .
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check
	$(BIN)/python -m tests.contract check
	$(BIN)/python -m tests.kubernetes
ifneq ($(strip $(NPM)),)
	cd protos && ../$(BUF) lint
	cd protos && ../$(BUF) breaking --against baseline/orbitmesh.binpb
	$(BIN)/python -m pytest tests/contract -m buf
else
	@echo "npm is not here: buf did not give its second opinion on the protos; our own rules judged alone"
endif

.PHONY: typescript
typescript:  ## the client in TypeScript, generated and built; its test is then part of `make test`
	cd clients/typescript && $(NPM) install --no-package-lock --no-audit --no-fund --loglevel=error && $(NPM) run --silent build

.PHONY: protos
protos: $(INSTALLED)  ## generate the stubs from protos/, and renew the baseline unless that breaks clients
	$(BIN)/python protos/generate.py
	$(BIN)/python -m tests.contract baseline

.PHONY: protos-baseline
protos-baseline: $(INSTALLED)  ## renew protos/baseline although it breaks clients: on purpose only
	$(BIN)/python -m tests.contract baseline --break-clients

.PHONY: test
test: $(INSTALLED)  ## the whole test suite; ARGS="-k planner" for a part
	$(BIN)/python -m pytest -m "not soak and not compose and not buf" $(SIDE_BY_SIDE) $(ARGS)

.PHONY: soak
soak: $(INSTALLED)  ## the long versions of the tests; SEEDS=10000 for more runs of the simulations
	ORBITMESH_SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulation --timeout=14400 $(ARGS)
	$(BIN)/python -m pytest -m soak --timeout=3600 $(ARGS)

.PHONY: fuzz
fuzz: $(INSTALLED)  ## a million changed frames and every method many times, against real processes; for the night
	$(BIN)/python -m tests.fuzz --json $(ARGS)

.PHONY: test-compose
test-compose: $(INSTALLED)  ## the tests in containers; needs docker-compose
	$(BIN)/python -m pytest -m compose --timeout=1800 $(ARGS)

.PHONY: demo
demo: $(INSTALLED)  ## a mesh of three satellites on this machine answers a prompt; JSON=1 for machines
	$(BIN)/orbitmesh demo $(JSON_FLAG)

.PHONY: demo-train
demo-train: $(INSTALLED)  ## eight nodes train, one is killed, and the mesh reads digits; JSON=1 for machines
	$(BIN)/orbitmesh demo --train $(JSON_FLAG)

.PHONY: bench
bench: $(INSTALLED)  ## ours against peers, interleaved in one run; NAME=hop for one, JSON=1 for machines
	for name in $(NAME); do $(BIN)/orbitmesh bench $$name $(JSON_FLAG); done

.PHONY: clean
clean:  ## remove what the commands above made
	rm -rf $(VENV) node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
