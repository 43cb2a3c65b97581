# Every target sets up what it needs in .venv; nothing else has to be installed than Python 3.11.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/stamp

# `make bench TRADES=500000 RUNS=1` for a shorter one.
TRADES ?= 2000000
FAUST_TRADES ?= 60000
RUNS ?= 3
# Of the table that is asked: `make bench QUERIED=1000000`.
QUERIED ?= 10000000

.PHONY: demo test lint types bench bench-queries chaos follow setup

# The main job on show; `make demo ONCE=1` ends by itself, with exit code 0 if all was found right.
demo: $(STAMP)
	$(BIN)/k2 demo $(if $(ONCE),--once)

# Most of a slow test is waiting: two at a time, a file each, take half as long.
JOBS ?= 2
test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders agents/ and tables/ install as k2.agents and k2.tables: mypy sees them put together.
types: $(STAMP)
	rm -rf .venv/types/k2
	mkdir -p .venv/types
	cp -R k2 .venv/types/k2
	cp -R agents tables .venv/types/k2/
	cd .venv/types && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p k2

# The machine should have nothing else to do: see docs/benchmarks.md.
bench: $(STAMP)
	@$(BIN)/python -m tests.bench --trades $(TRADES) --faust-trades $(FAUST_TRADES) --runs $(RUNS)
	@$(BIN)/python -m tests.bench.queries --trades $(QUERIED)

bench-queries: $(STAMP)
	@$(BIN)/python -m tests.bench.queries --trades $(QUERIED)

# Every fault that is known, ROUNDS times each, and what was lost or doubled: nothing, one hopes.
SEED ?= 1
ROUNDS ?= 1
chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos --seed $(SEED) --rounds $(ROUNDS)

# A follower that leaves and comes back 50 times beside 50,000 trades a second; a restart, expiry.
follow: $(STAMP)
	FOLLOW_RATE=50000 FOLLOW_RECONNECTS=50 $(BIN)/python -m pytest -q -s tests/integration/test_replay.py -k "follower and local"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up .venv: about a minute the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[embedded,full,dev]'
	@touch $@
