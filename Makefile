# make demo: the main job on the built-in example. make test: lint, types, tests. Both install what they need into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Small products are slower on many threads; the tests use processes instead.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: demo test lint types docs bench mutants clean

demo: $(VENV)/.demo
	@$(BIN)/normscope diagnose mlp:depth=32,width=128 mlp:depth=32,width=128,norm=batch --data digits --html normscope-report.html
	@echo "The report: file://$(CURDIR)/normscope-report.html"

# The types are looked at while the tests run, and said at the end.
test: lint
	@log=$$(mktemp); $(BIN)/mypy > $$log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -n 2; tests=$$?; \
	wait $$types; types=$$?; cat $$log; rm -f $$log; \
	exit $$((tests || types))

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# The pages that are made from the code, then the site: file://.../site/index.html opens without a server.
docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	rm -rf .cache # notebooks run anew: what they show is the code's
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site: file://$(CURDIR)/site/index.html"

bench: $(VENV)/.test
	$(BIN)/python benchmarks/overhead.py

# Wrong lines planted one at a time, by hand and by chance: which the tests and the claims catch (an hour each).
mutants: $(VENV)/.test
	$(BIN)/python benchmarks/breaks.py
	$(BIN)/python -m pip install -q cosmic-ray
	$(BIN)/python benchmarks/mutants.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .cache site normscope-report.html

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "normscope needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: its pin decides which build everything else sees.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[report]'
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[report,docs]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo
