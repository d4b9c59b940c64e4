# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test peer lint clean

# Remade whenever the dependencies change.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bissl-fast needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/bissl-fast train --dataset textures --name demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -m 'not gpu and not slow and not peer'

# Comparisons with other libraries, which are installed for it.
peer: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,peer]'
	$(BIN)/python -m pytest -m peer

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
