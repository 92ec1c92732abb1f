# Needs python3 (3.11 or newer) and make, nothing else. `make help` lists what there is.
PY     ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements-dev.lock
ARGS   ?=

export UV_PYTHON_DOWNLOADS = never
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore
MAKEFLAGS += --no-print-directory

# A stamp is made anew when what it installed from has changed.
VENV_OK  := $(VENV)/pyvenv.cfg
DEMO_OK  := $(VENV)/demo.stamp
DEV_OK   := $(VENV)/dev.stamp
BENCH_OK := $(VENV)/bench.stamp

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types js core docs bench check lock clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV_OK):
	@command -v $(PY) >/dev/null || { echo "$(PY) is not here: install Python 3.11 or newer, or say make PY=python3.12" >&2; exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: say make PY=python3.12")'
	@$(PY) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "python3 cannot make virtual environments here: installing python3-venv" >&2; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null && $(PY) -m venv $(VENV); \
	  else echo "python3 cannot make virtual environments here. On Debian or Ubuntu type: sudo apt-get install python3-venv" >&2; exit 1; fi; }

$(DEMO_OK): $(VENV_OK) pyproject.toml
	@[ $(DEV_OK) -nt pyproject.toml ] || $(BIN)/python -m pip install -q -e .
	@touch $@

# uv is some 3 times as fast; where it cannot reach the packages (an index that only pip knows of), pip reads the same file.
$(DEV_OK): $(VENV_OK) $(LOCK) pyproject.toml
	@$(BIN)/uv --version >/dev/null 2>&1 || \
	 $(BIN)/python -m pip install -q "uv$$(sed -n 's/^uv\(==[^ ]*\).*/\1/p' $(LOCK))" 2>/dev/null || true
	@{ $(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r $(LOCK) && \
	   $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . ; } || \
	 { echo "uv could not install; trying pip" >&2; \
	   $(BIN)/python -m pip install -q --require-hashes -r $(LOCK) && $(BIN)/python -m pip install -q --no-deps -e . ; }
	@touch $@

$(BENCH_OK): $(DEV_OK) requirements-bench.lock
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements-bench.lock || \
	 $(BIN)/python -m pip install -q --require-hashes -r requirements-bench.lock
	@touch $@

install: $(DEV_OK) ## .venv with everything that developing needs

demo: $(DEMO_OK) ## see a run survive kill -9
	@$(BIN)/durable demo $(ARGS)

test: $(DEV_OK) ## all tests: make test ARGS="-k recovery -x"
	@$(BIN)/python -m pytest -q $(ARGS)

core: $(DEV_OK) ## durable/core: every branch taken by tests/core alone
	@if [ -d tests/core ]; then \
	  export COVERAGE_FILE=.coverage.core; \
	  $(BIN)/python -m coverage run --source=durable/core -m pytest -q --no-header --no-summary tests/core && \
	  $(BIN)/python -m coverage report --fail-under=100; \
	elif [ "$$CI" = true ]; then echo "tests/core is missing" >&2; exit 1; \
	else echo "tests/core is not there yet: coverage of durable/core was not measured"; fi

lint: $(DEV_OK) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(DEV_OK) ## let ruff write the format, and mend what it can
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format .

types: $(DEV_OK) ## mypy strict on the package; mypy and pyright strict on tests/typing
	@$(BIN)/mypy
	@if [ -d tests/typing ]; then $(BIN)/mypy tests/typing && $(BIN)/pyright; fi

js: ## the tests of the page's modules, where there are any
	@if [ -z "$$(find durable tests -name '*.test.js' 2>/dev/null | head -n 1)" ]; then :; \
	elif command -v node >/dev/null; then node --test $$(find durable tests -name '*.test.js'); \
	elif [ "$$CI" = true ]; then echo "node was not found: it runs the tests *.test.js" >&2; exit 1; \
	else echo "node was not found: the tests *.test.js were skipped"; fi

docs: $(DEV_OK) ## build the documentation into site/
	@if [ -f zensical.toml ] || [ -f mkdocs.yml ]; then $(BIN)/zensical build --clean; fi

bench: $(BENCH_OK) ## the table of docs/benchmarks.md: make bench ARGS="--quick"
	@$(BIN)/python -m benchmarks $(ARGS)

# The tests come last, so that pytest's closing line is the last that is printed.
check: lint types js docs core test ## all that has to hold before a commit

# Neither index addresses nor paths get into these files.
COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
lock: $(VENV_OK) ## choose versions anew: make lock ARGS=--upgrade
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q uv
	@$(COMPILE) $(ARGS) --all-extras --group dev pyproject.toml -o $(LOCK)
	@$(COMPILE) $(ARGS) -c $(LOCK) --group bench -o requirements-bench.lock

clean: ## remove what make made
	rm -rf $(VENV) .bench .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
