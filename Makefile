# Daily needs, one command each. A virtual environment is made in .venv when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: help run test lint bench story leaderboard world clean

help:
	@echo "make run     set up and run the main job: PPO on Recsys-v0 (ARGS=... adds keys)"
	@echo "make test    set up and pass the tests, linter and types included"
	@echo "make lint    ruff and mypy"
	@echo "make bench   speed, as ratios in one run"
	@echo "make story   every claim of the README's table, trained and checked (about an hour)"
	@echo "make leaderboard   what is missing of the published grid, its table and figures (hours)"
	@echo "make world   build the complete_journey shop again"

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "recenv needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

run: $(VENV)/.ready
	$(BIN)/python -m experiments.run agent=ppo if_exists=resume $(ARGS)

test: lint
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready
	$(BIN)/python -m experiments.bench $(ARGS)

story: $(VENV)/.ready
	$(BIN)/python -m experiments.story $(ARGS)

leaderboard: $(VENV)/.ready
	$(BIN)/python -m experiments.leaderboard $(ARGS)
	$(BIN)/python -m experiments.leaderboard draw=true $(ARGS)

world: $(VENV)/.ready
	$(BIN)/python -m recenv.worlds.complete_journey $(ARGS)

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
