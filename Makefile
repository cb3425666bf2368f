# Each target sets up what it needs, in .venv and nowhere else.
.DEFAULT_GOAL := help
.PHONY: help demo farm fuzz test test-mta test-kafka test-trouble setup check fmt lint types imports bench up down lock clean
.PHONY: soak outages ways test-ways test-network nightly score kafka-cluster kafka-status kafka-start kafka-stop kafka-kill kafka-down
unexport PYTHONPATH PYTHONHOME
# Each test starts programs: compiled once, they start in half the time.
unexport PYTHONDONTWRITEBYTECODE

PYTHON := .venv/bin/python
READY := .venv/.ready
KAFKA_READY := .kafka/.ready
KAFKA := $(PYTHON) -m tools.kafka.background
# The tests that meet a broker, and tests/kafka: what only Apache Kafka can show. What meets none runs in `make test` alone.
KAFKA_TESTS := tests/kafka tests/faults/test_kill.py tests/faults/test_recovery_race.py tests/faults/test_leaving.py \
	tests/contract/test_faust_on_a_broker.py tests/stream/test_connection.py tests/stream/test_compression.py tests/ops/test_publish.py \
	tests/ops/test_replay.py tests/ops/test_verify.py tests/ops/test_undecided.py tests/e2e/test_verify_at_work.py tests/cli/test_readers.py
CLEANLY := $(PYTHON) tools/no_orphans.py $(PYTHON)
PYTEST := $(CLEANLY) -m pytest
# One after the other to whoever is free, the long ones first (the marker `long`).
IN_ORDER := --dist load --maxschedchunk 1

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## put 300 companies of every kind through the whole gate, here
	@$(PYTHON) -m ct_stream demo

test: $(READY)  ## run all tests
	@$(PYTEST) --numprocesses 4 --dist worksteal

test-mta: $(READY)  ## ask real mail servers and resolvers (Debian, root): Postfix, Exim, nsd, unbound
	@$(PYTEST) tests/mta

test-kafka: $(READY) $(KAFKA_READY)  ## run on three brokers of Apache Kafka what depends on Kafka (Java 17, Maven)
	@$(PYTEST) --broker kafka --numprocesses 2 $(IN_ORDER) $(KAFKA_TESTS)

fuzz: $(READY)  ## send garbage to the SMTP driver and from resolvers, for FUZZ_S seconds each (300)
	@CT_TEST_FUZZ_S=$(or $(FUZZ_S),300) $(PYTEST) --capture=no tests/fuzz

test-trouble: $(READY)  ## break things on our side, slowly: refusals, Postgres, poison, descriptors
	@$(PYTEST) --numprocesses 3 $(IN_ORDER) tests/trouble

soak: $(READY) $(KAFKA_READY)  ## kill, freeze and break three workers and their ways out on Apache Kafka (root): MINUTES=30 SEED=7
	@$(CLEANLY) -m tests.soak.soak --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED))

outages: $(READY)  ## break network and database in turn under a stream (root, nft, ip): MINUTES=5 each, ONLY=Postgres
	@$(CLEANLY) -m tests.soak.outages --minutes $(or $(MINUTES),5) $(if $(ONLY),--only '$(ONLY)')

test-ways: $(READY)  ## break one worker's way out beside whole ones, in eleven ways (root, ip; nft, or Debian): SHORT=1
	@$(PYTEST) --numprocesses 2 $(IN_ORDER) $(if $(SHORT),-m short) tests/ways

test-network:  # what the checks run beside test-trouble, one after the other
	@$(MAKE) --no-print-directory test-mta
	@$(MAKE) --no-print-directory test-ways SHORT=1

ways: $(READY) $(if $(filter kafka,$(BROKER)),$(KAFKA_READY))  ## the same, longer, under 400 companies: MINUTES=5 each, ONLY='proxy resolver' BROKER=kafka
	@$(CLEANLY) -m tests.ways.long --minutes $(or $(MINUTES),5) $(if $(ONLY),--only '$(ONLY)') $(if $(BROKER),--broker $(BROKER))

nightly: $(READY)  ## soak, outages, ways, kills, fuzz, hostile servers, a million companies; 4.7 h: ONLY='soak fuzz' MINUTES='soak=60 fuzz=2'
	@$(PYTHON) -m tools.nightly --only '$(ONLY)' --minutes '$(MINUTES)'

test-%: $(READY)  ## run the tests of one folder of tests/, such as test-gate or test-e2e
	@$(PYTEST) tests/$*

setup: $(READY)  ## make .venv with ct-stream in it
	@echo "ready: .venv/bin/ct-stream --help"

check: lint types imports test  ## everything that must hold before a change lands

fmt: $(READY)  ## format the code and fix what can be fixed
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

score: $(READY)  ## compare how the rules read labelled replies with their labels: FILE=labelled.tsv ARGS=--explain
	@$(PYTHON) -m tools.score_replies $(or $(FILE),tests/data/smtp_replies.tsv) $(ARGS)

farm: $(READY)  ## run mail servers of every kind on loopback, to ask with ct-stream check
	@$(PYTHON) -m ct_stream.local.farm

up: $(READY)  ## start a broker and a Postgres in the background
	@$(PYTHON) -m ct_stream local up

down: $(READY)  ## stop them
	@$(PYTHON) -m ct_stream local down

kafka-cluster: $(READY) $(KAFKA_READY)  ## run three brokers of Apache Kafka in the background (Java 17, Maven)
	@$(KAFKA) up

kafka-status: $(READY)  ## say which of them run, and what they lack
	@$(KAFKA) status

kafka-stop:  ## stop one, as at an upgrade: make kafka-stop BROKER=2
kafka-kill:  ## kill one at once: make kafka-kill BROKER=2
kafka-start:  ## start one again, with what it had: make kafka-start BROKER=2
kafka-stop kafka-kill kafka-start: $(READY)
	@$(KAFKA) $(@:kafka-%=%) $(or $(BROKER),$(error name the broker: make $@ BROKER=2))

kafka-down: $(READY)  ## stop all three; what they hold stays until `make clean`
	@$(KAFKA) down

# A backport that only 3.11 needs must be pinned too. LOCK=--upgrade takes the newest versions that pyproject.toml allows.
PIP_COMPILE = CUSTOM_COMPILE_COMMAND="make lock" PIP_FIND_LINKS= $(PYTHON) -m piptools compile --quiet \
	--generate-hashes --strip-extras --allow-unsafe --build-deps-for wheel \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options $(LOCK) pyproject.toml

lock: $(READY)  ## write constraints.txt and constraints-runtime.txt from pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make lock needs a .venv of Python 3.11")'
	$(PIP_COMPILE) --all-extras --output-file constraints.txt
	$(PIP_COMPILE) --constraint constraints.txt --output-file constraints-runtime.txt

clean:  ## remove .venv and what the tools left
	@if [ -e .kafka/cluster ] && [ -x $(PYTHON) ]; then $(KAFKA) down; fi
	@rm -rf .venv .mta .kafka build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt tools/make-venv
	@sh tools/make-venv

$(KAFKA_READY): tools/kafka/pom.xml tools/fetch-kafka
	@sh tools/fetch-kafka
