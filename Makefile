# Everything runs in .venv, which the first target makes. Nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: demo test check changelog docs bench package stress stress-short clean

# Needs less than the tests do: what it installs is what users install, and pip shows that it is at work.
demo: .venv/runtime
	$(BIN)/semid demo sample

test: .venv/installed
	$(RUN) -m pytest --cov --cov-report=term -n 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	$(BIN)/lint-imports
	PYTHONPATH=$(CURDIR):$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		$(BIN)/basedpyright --pythonpath $(RUN) --verifytypes semid_dataset --ignoreexternal > .venv/types.txt \
		|| { grep -B1 -A2 'error:' .venv/types.txt; tail -n 2 .venv/types.txt; exit 1; }

# What the next version's part of CHANGELOG.md will say; `towncrier build` writes it and removes the fragments.
changelog: .venv/installed
	$(BIN)/towncrier build --draft --version next

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

bench: .venv-bench/installed
	.venv-bench/bin/python benchmarks/quantizers.py
	.venv-bench/bin/python benchmarks/warm.py

stress: .venv/installed
	$(RUN) -m pytest tests/faults -m stress --timeout 1800

# A minute of it, for every change.
stress-short: .venv/installed
	STRESS_KILLS=30 STRESS_SOAK=10 $(RUN) -m pytest tests/faults -m stress --timeout 600 -k 'every_call or any_call or five_hundred or soak'

# Wheel and sdist, each installed into an empty environment and tried without the repository.
package:
	rm -rf dist .venv-package
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet build
	.venv-package/bin/python -m build
	cp tests/package_smoke.py dist/
	for form in whl tar.gz; do \
		rm -rf .venv-package && $(PYTHON) -m venv .venv-package && \
		.venv-package/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls $(CURDIR)/dist/*.$$form)[cli]" && \
		(cd / && $(CURDIR)/.venv-package/bin/python $(CURDIR)/dist/package_smoke.py) || exit 1; \
	done

.venv/runtime: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	@touch $@

.venv/installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch .venv/runtime $@

# The programs that we are measured against, in an environment of their own.
.venv-bench/installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]' --requirement benchmarks/requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-bench .venv-package dist sample site .pytest_cache .mypy_cache .ruff_cache .coverage*
