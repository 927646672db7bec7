# Everything runs in .venv, which the first target makes. Nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: demo test check docs bench stress stress-short clean

demo: .venv/installed
	rm -rf sample
	@echo "--- first run: makes the sample, generates semantic IDs, recommends ---"
	$(RUN) examples/evalu/infer.py
	@echo "--- second run: loads them ---"
	$(RUN) examples/evalu/infer.py

test: .venv/installed
	$(RUN) -m pytest --cov --cov-report=term -n 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

bench: .venv-bench/installed
	.venv-bench/bin/python benchmarks/quantizers.py
	.venv-bench/bin/python benchmarks/warm.py

stress: .venv/installed
	$(RUN) -m pytest -m stress --timeout 1800

# A minute of it, for every change.
stress-short: .venv/installed
	STRESS_KILLS=30 STRESS_SOAK=10 $(RUN) -m pytest -m stress --timeout 600 -k 'every_call or any_call or five_hundred or soak'

.venv/installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv/docs: .venv/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# The programs that we are measured against, in an environment of their own.
.venv-bench/installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]' --requirement benchmarks/requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-bench sample site .pytest_cache .mypy_cache .ruff_cache .coverage*
