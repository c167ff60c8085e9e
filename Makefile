# Everything here sets up what it needs: a bare machine with Python 3.11 or newer (with venv and
# pip) and make is enough. `make help` lists the targets.

PYTHON      ?= python3
VENV        ?= .venv
PIP_ARGS    ?=
PYTEST_ARGS ?= -n 2 --dist loadgroup

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL := models/all-MiniLM-L6-v2
TRITON := build/triton
CLIENTS := build/clients
CLUSTER := build/cluster
RAY_TESTS ?= cluster and not nightly
RUNTIMES := genai optimum transformers-js
CLIENTS_TESTS ?= clients and not nightly

# The lowest versions that pyproject.toml declares. The public index has older torch as builds for
# CUDA, gigabytes of them: torch is the one of constraints.txt unless PIP_ARGS names an index.
LOWEST       := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.installed
LOWEST_TORCH ?= $(if $(PIP_ARGS),lowest,pinned)
LOWEST_TESTS := $(addprefix tests/, end_to_end/merge_and_build end_to_end/test_swappable.py \
    end_to_end/batched end_to_end/extend triton/test_repository.py core/test_npz_file.py)

# What JetPack 6 has: the part that runs on devices is tested with it.
DEVICE       := .venv-device
DEVICE_STAMP := $(DEVICE)/.numpy-1.21.5-onnxruntime-1.20.1

# What `pip install .` brings: no torch, no transformers, no runtime. On Python 3.10 too.
CORE         := build/core-env
CORE_STAMP   := $(CORE)/.installed

# requirements.lock in an environment of its own, and what writes and audits it.
LOCKED       := .venv-locked
SUPPLY       := .venv-supply
SUPPLY_STAMP := $(SUPPLY)/.installed

# What builds the documentation site: mkdocs, and the light core, whose help and models it reads.
DOCS         := .venv-docs
DOCS_STAMP   := $(DOCS)/.installed

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help env model demo docs test test-slow test-lowest test-triton test-clients test-ray test-trt test-rtx test-aarch64 test-lock device-env core-env lock audit check format templates families nightly bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12    the interpreter that .venv is made from (now: $(PYTHON))"
	@echo "  PIP_ARGS='...'       further arguments for pip, such as the index of CPU builds of torch"
	@echo "  PYTEST_ARGS='...'    further arguments for pytest, such as -k NAME"

env: $(STAMP) ## set up .venv with the exact versions of constraints.txt

model: $(MODEL)/config.json ## fetch the checkpoint that the demo and the tests use (about 90 MB)

demo: env model ## a real checkpoint and adapter to a verified export, with the parity and latency figures
	$(BIN)/lora-export merge-and-build recipes/minilm-intents/recipe.yaml

docs: $(DOCS_STAMP) ## build the documentation site to build/site; a warning fails it
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict --quiet

test: env model device-env core-env ## run the tests, but for the slow ones
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not slow and not nightly'

test-slow: env model device-env core-env ## run the slow tests
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'slow and not nightly' tests

# transformers 5.12's DeBERTa still scripts functions, which torch 2.13 deprecates.
test-lowest: $(LOWEST_STAMP) ## run end-to-end tests with the lowest versions that pyproject.toml declares
	$(LOWEST)/bin/python -m pip list --format=freeze | grep -E '^(click|numpy|onnx|torch|transformers|peft)'
	$(LOWEST)/bin/python -m pytest $(PYTEST_ARGS) -m 'not slow and not nightly' \
	    -W 'ignore:`torch.jit.script` is deprecated:DeprecationWarning' $(LOWEST_TESTS)

test-trt: env ## run the tests that need TensorRT and a GPU; what is missing is said
	$(BIN)/python -m pytest tests/end_to_end/tensorrt -m tensorrt -rs

test-rtx: env ## build, run, measure and bundle with TensorRT for RTX; needs a GPU, what is missing is said
	$(BIN)/python -m pytest tests/end_to_end/rtx_gpu -m tensorrt -rs

test-aarch64: env model ## verify bundles in an emulated aarch64 userland; needs apt and a network
	$(BIN)/lora-export merge-and-build recipes/jetson-minilm/recipe.yaml --quiet
	$(BIN)/lora-export merge-and-build recipes/jetson-gpt2/recipe.yaml --no-latency --quiet
	$(BIN)/python recipes/jetson-roberta-refit/make_pair.py build/roberta-pair
	$(BIN)/lora-export merge-and-build recipes/jetson-roberta-refit/recipe.yaml --no-latency --quiet
	$(BIN)/python -m tools.aarch64 build/aarch64 build/jetson-minilm.tar build/jetson-gpt2.tar \
	    build/jetson-roberta-refit.tar

# geventhttpclient, which tritonclient needs over HTTP, has wheels for some Pythons only: without it
# the tests speak gRPC alone.
test-triton: env $(TRITON)/venv/.installed ## run the tests against the real Triton server (fetched: 55 MB)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
	    -c constraints.txt $(PIP_ARGS) 'tritonclient[http]'
	LORA_EXPORT_TRITON=$(TRITON) $(BIN)/python -m pytest tests/end_to_end/triton

test-clients: env model $(RUNTIMES:%=$(CLIENTS)/%/.installed) ## run what layout writes in the real runtimes (each in its own environment)
	LORA_EXPORT_CLIENTS=$(CLIENTS) $(BIN)/python -m pytest -m '$(CLIENTS_TESTS)' $(CLIENTS_ARGS) tests/end_to_end/clients

# Ray listens on all interfaces: its tests have a network of their own, with loopback alone.
test-ray: env $(CLUSTER)/.installed ## run fleets on a Ray cluster and against a server of S3 (in an environment of its own)
	LORA_EXPORT_LOOPBACK=1 unshare -rn sh -c 'ip link set lo up && exec "$$@"' -- \
	    $(CLUSTER)/bin/python -m pytest -m '$(RAY_TESTS)' -p no:cacheprovider tests/end_to_end/cluster

# With the build of torch that .venv has: where pip finds CPU builds, not the libraries of CUDA.
test-lock: env ## install requirements.lock, hashes checked, into an environment of its own
	$(PYTHON) -m venv --clear $(LOCKED)
	$(BIN)/python -m tools.lock here > $(LOCKED)/requirements.txt
	$(LOCKED)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	    --require-hashes --only-binary :all: -r requirements-core.lock
	$(LOCKED)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	    --require-hashes --no-build-isolation -r $(LOCKED)/requirements.txt
	$(LOCKED)/bin/python -m pip install --quiet --disable-pip-version-check --no-index \
	    --no-deps --no-build-isolation .
	$(LOCKED)/bin/python -m pip check
	cd $(LOCKED) && bin/lora-export doctor

lock: env $(SUPPLY_STAMP) ## write requirements.lock and the other lock files from constraints.txt
	$(BIN)/python -m tools.lock write --uv $(SUPPLY)/bin/uv

audit: env $(SUPPLY_STAMP) ## look up known vulnerabilities of the locked versions, where an advisory source answers
	$(BIN)/python -m tools.audit --pip-audit $(SUPPLY)/bin/pip-audit $(AUDIT_ARGS)

device-env: $(DEVICE_STAMP) ## set up Python 3.10 with NumPy 1.21.5, where there is a Python 3.10

core-env: $(CORE_STAMP) ## set up an environment of the core alone, without torch

check: env ## lint, format, types, import contracts, sizes of files and functions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.structure
	$(BIN)/python -m tools.opening

format: env ## format the code and fix what can be fixed; write what docs/architecture takes from the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m tools.architecture

templates: env ## make the graph templates that ship with the package (FAMILIES="bert gpt2": those alone)
	$(BIN)/python -m tools.templates $(FAMILIES)

families: env ## export every model family tiny, compare it with torch, build it, write docs/models.md (hours)
	$(BIN)/python -m tools.models
	$(BIN)/python -m tools.model_engines

nightly: env model ## the fuzzes and whole sweeps: random merges against unmerged PEFT, damaged files for each reader and command, every graph through TensorRT for RTX (NIGHTLY_ARGS='--seed 2')
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m nightly
	$(BIN)/python -m tools.merge_fuzz --count 5000 --jobs 2 $(NIGHTLY_ARGS)
	$(BIN)/python -m tools.reader_fuzz --count 20000 --scale --jobs 2 $(NIGHTLY_ARGS)
	$(BIN)/python -m tools.bad_file_matrix --jobs 2

bench: env model ## measure the claims of the README; results in bench/results/
	$(BIN)/python bench/run_all.py

clean: ## remove build outputs and caches
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find lora_export tests tools bench recipes -name __pycache__ -type d -prune -exec rm -rf {} + \
	    2>/dev/null || true

distclean: clean ## remove .venv and the fetched checkpoint as well
	rm -rf $(VENV) $(DEVICE) $(DOCS) $(LOWEST) $(LOCKED) $(SUPPLY) models

KERNELS := $(wildcard lora_export/core/_*.[ch])

# The stamp is written last: an interrupted install is done again, and so is one that is older than
# the files it depends on. A .venv whose interpreter has gone (a moved checkout) is made anew.
$(STAMP): pyproject.toml setup.py constraints.txt $(KERNELS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: the export extra needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)" >&2; \
	    echo "name another interpreter: make $(or $(MAKECMDGOALS),env) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
	    -e '.[export,cpu,dev,rtx]'
	@touch $@

$(LOWEST_STAMP): pyproject.toml setup.py constraints.txt tools/lowest.py $(KERNELS)
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tools/lowest.py --torch $(LOWEST_TORCH) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -c $(LOWEST)/constraints.txt $(PIP_ARGS) -e '.[export,cpu,triton]' \
	    hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

# Without a Python 3.10 nothing is made, and the tests that need it say so.
$(DEVICE_STAMP):
	@for python in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python3.10; do \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
	    "$$python" -m venv --clear $(DEVICE) && \
	    $(DEVICE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	        --require-hashes -r tools/locks/device.lock && touch $@; exit; \
	done; echo "note: there is no Python 3.10, JetPack 6's: the tests that need it are skipped"

# The package itself is taken from the tree, so that what is tested is what stands there.
$(CORE_STAMP): requirements-core.lock
	$(PYTHON) -m venv --clear $(CORE)
	$(CORE)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps \
	    --require-hashes --only-binary :all: -r requirements-core.lock
	@touch $@

$(SUPPLY_STAMP): tools/locks/supply.lock
	$(PYTHON) -m venv --clear $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	    --require-hashes --only-binary :all: -r tools/locks/supply.lock
	@touch $@

$(DOCS_STAMP): tools/locks/docs.lock requirements-core.lock
	@$(DOCS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	    --require-hashes --only-binary :all: -r tools/locks/docs.lock -r requirements-core.lock
	@touch $@

$(TRITON)/venv/.installed: tools/locks/triton-server.lock tools/locks/triton-models.lock | $(STAMP)
	$(BIN)/python -m tools.fetch_triton $(TRITON)

$(CLIENTS)/transformers-js/.installed: tools/locks/transformers-js/package-lock.json | $(STAMP)
	$(BIN)/python -m tools.fetch_npm_client $(CLIENTS)/transformers-js

$(CLIENTS)/%/.installed: tools/locks/client-%.lock | $(STAMP)
	$(BIN)/python -m tools.fetch_clients $(CLIENTS)/$*

# Ray, moto and s3fs, in front of what .venv has.
$(CLUSTER)/.installed: tools/locks/cluster.lock | $(STAMP)
	$(PYTHON) -m venv --clear $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps \
	    --require-hashes --only-binary :all: -r tools/locks/cluster.lock
	$(BIN)/python -c 'import pathlib, sysconfig; \
	    place = sysconfig.get_path("purelib", vars={"base": "$(CURDIR)/$(CLUSTER)"}); \
	    line = "import site; site.addsitedir({!r})\n".format(sysconfig.get_path("purelib")); \
	    pathlib.Path(place, "of-venv.pth").write_text("$(CURDIR)\n" + line)'
	@touch $@

$(MODEL)/config.json: | $(STAMP)
	$(BIN)/python -m tools.fetch_minilm $(MODEL)
