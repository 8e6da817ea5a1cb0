# Two commands are enough: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint audit-deps docs bench bench-serve clean

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11" >&2; \
		     echo "hint: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned set (about 2.5 GB, a few minutes)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,examples,postgres]'
	@touch $@

demo: $(INSTALLED)
	@test -f demo/home-commands/tuneworthy.yaml \
		|| $(BIN)/tuneworthy example home-commands demo/home-commands
	$(BIN)/tuneworthy decide demo/home-commands

test: $(INSTALLED)
	$(BIN)/tuneworthy models --fetch smollm2-135m-instruct
	$(BIN)/pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit -q -r src -c pyproject.toml

# Known holes in what is installed: advice, for the index may not know every package.
audit-deps: $(INSTALLED)
	-$(BIN)/pip-audit --desc off

docs: $(INSTALLED)
	$(BIN)/python docs/build.py

bench: $(INSTALLED)
	@for script in benchmarks/[!_]*.py; do $(BIN)/python $$script || exit 1; done

bench-serve: $(INSTALLED)
	$(BIN)/python benchmarks/serve.py

clean:
	rm -rf $(VENV) demo
