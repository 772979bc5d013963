# A fresh machine needs Python 3.11 or newer, make, and the package registry. Everything else lives in .venv.

PYTHON      ?= python3
# Two processes; a file's tests stay together, and files come in the order of tests/conftest.py: the longest first.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
LOCK_ARGS   ?=

VENV  := .venv
PY    := $(VENV)/bin/python
# Kept inside .venv and named after this folder, so that a copied or moved checkout installs itself again.
READY := $(VENV)/.ready$(subst /,-,$(subst $() ,_,$(CURDIR)))

COMPILE := $(PY) -m piptools compile --quiet --generate-hashes --allow-unsafe --no-strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host $(LOCK_ARGS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-external check fmt bench soak lock

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## Play the promises against a server of its own, with real events
	$(VENV)/bin/jobengine demo

test: $(READY) ## Run every test: unit, doctest, storage, web, command line, real processes
	$(PY) -m pytest $(PYTEST_ARGS)

check: $(READY) ## What every change must pass, in under a minute: format, lint, types, imports, unit tests, house rules
	$(PY) -m ruff format --check --quiet .
	$(PY) -m ruff check --quiet .
	$(PY) -m basedpyright
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
	$(PY) -m pytest -q src tests/unit tests/test_house_rules.py

fmt: $(READY) ## Format the code and repair what the linter can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(READY) ## Run every benchmark and print its table
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

test-external: $(READY) ## Run what stores a second time, on the PostgreSQL of JOBENGINE_TEST_DATABASE_URL
	$(PY) -m pytest $(PYTEST_ARGS) tests/storage tests/web tests/contract/test_conventions.py tests/contract/test_promises.py \
		$(addprefix tests/acceptance/test_,seed_plan.py concurrency.py tenants_apart.py real_events.py wire.py workers.py workers_elsewhere.py command_line.py) \
		--ignore=tests/storage/test_embedded.py --ignore=tests/storage/test_embedded_rights.py

soak: $(READY) ## Run the state machines and the crash tests for a long time
	JOBENGINE_TEST_KILLS=20 JOBENGINE_TEST_WORKER_KILLS=50 $(PY) -m pytest -o faulthandler_timeout=0 \
		--hypothesis-profile=soak tests/model tests/fuzz tests/acceptance tests/broker $(PYTEST_ARGS)

lock: $(READY) ## Write the locks from pyproject.toml (LOCK_ARGS=--upgrade takes the newest versions)
	$(COMPILE) --extra dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --extra otel --extra celery --output-file requirements-serve.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --only-build-deps --build-deps-for wheel \
		--output-file requirements-build.lock pyproject.toml

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("jobengine needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.ready* && touch $(READY)
