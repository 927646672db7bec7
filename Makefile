# Everything runs in .venv, which the first target makes. Nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench stress clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
