# Each target sets up what it needs, in .venv and nowhere else.
.DEFAULT_GOAL := help
.PHONY: help demo farm fuzz test test-mta setup check fmt lint types imports bench up down lock clean
unexport PYTHONPATH PYTHONHOME

PYTHON := .venv/bin/python
READY := .venv/.ready
PYTEST := $(PYTHON) tools/no_orphans.py $(PYTHON) -m pytest

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## put 300 companies of every kind through the whole gate, here
	@$(PYTHON) -m ct_stream demo

test: $(READY)  ## run all tests
	@$(PYTEST) --numprocesses 3 --dist worksteal

test-mta: $(READY)  ## ask real mail servers and resolvers (Debian, root): Postfix, Exim, nsd, unbound
	@$(PYTEST) tests/mta

fuzz: $(READY)  ## send garbage to the SMTP driver and from resolvers, for FUZZ_S seconds each (300)
	@CT_TEST_FUZZ_S=$(or $(FUZZ_S),300) $(PYTEST) --capture=no tests/fuzz

test-%: $(READY)  ## run the tests of one folder of tests/, such as test-gate or test-e2e
	@$(PYTEST) tests/$*

setup: $(READY)  ## make .venv with ct-stream in it
	@echo "ready: .venv/bin/ct-stream --help"

check: lint types imports test  ## everything that must hold before a change lands

fmt: $(READY)  ## format the code and mend what can be mended
	@$(PYTHON) -m ruff check --quiet --fix-only .
	@$(PYTHON) -m ruff format .

lint: $(READY)  ## look for mistakes and for code that is not formatted
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

types: $(READY)  ## check the types
	@$(PYTHON) -m mypy

imports: $(READY)  ## check that imports point one way and that gate/ is pure
	@.venv/bin/lint-imports

bench: $(READY)  ## measure the gate against a bare loop of the same probes
	@$(PYTHON) -m bench

farm: $(READY)  ## run mail servers of every kind on loopback, to ask with ct-stream check
	@$(PYTHON) -m ct_stream.local.farm

up: $(READY)  ## start a broker and a Postgres in the background
	@$(PYTHON) -m ct_stream local up

down: $(READY)  ## stop them
	@$(PYTHON) -m ct_stream local down

# A backport that only 3.11 needs must be pinned too. LOCK=--upgrade takes the newest versions that pyproject.toml allows.
PIP_COMPILE = CUSTOM_COMPILE_COMMAND="make lock" PIP_FIND_LINKS= $(PYTHON) -m piptools compile --quiet \
	--generate-hashes --strip-extras --allow-unsafe --build-deps-for wheel \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options $(LOCK) pyproject.toml

lock: $(READY)  ## write constraints.txt and constraints-runtime.txt from pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make lock needs a .venv of Python 3.11")'
	$(PIP_COMPILE) --all-extras --output-file constraints.txt
	$(PIP_COMPILE) --constraint constraints.txt --output-file constraints-runtime.txt

clean:  ## remove .venv and what the tools left
	@rm -rf .venv .mta build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt tools/make-venv
	@sh tools/make-venv
