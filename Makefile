# The three commands: make quickstart, make test, make format. Each makes .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?=

.PHONY: quickstart test core lint format clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

# Trains AT and AT-AWP on handwritten digits, evaluates both, prints one table, draws the curves.
quickstart: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" sh configs/quickstart.sh runs/quickstart

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest --numprocesses=2

core: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses=2 -m core

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
