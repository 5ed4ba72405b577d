# Two targets matter to a user: `make demo` and `make test`. Each installs what it lacks, into .venv.
# Every step leaves a stamp, so a second run only does what changed.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc)
MODEL ?=
TP ?= 1
PYTEST_ARGS ?=
# What is random in the tests: the same in each run, so that a change is judged by what it changed.
# `make soak` looks further.
HICACHE_SEED ?= 1
ROUNDS ?= 10
SEEDS ?= 2000
export CMAKE_BUILD_PARALLEL_LEVEL = $(JOBS)

py := $(abspath $(VENV))/bin/python
pip := $(py) -m pip --disable-pip-version-check
stamps := $(VENV)/.stamps
cpp_files := $(shell find csrc -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt 2>/dev/null)
cpp_tests := $(shell find tests/cpp -name '*.cc' -o -name '*.h' 2>/dev/null)
say = @printf '\033[1m[%s]\033[0m %s\n' $(1) $(2)

.PHONY: help demo test sim soak test-rdma guest-kernel bench lint format stubs sanitize build clean pytest cpp-test

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
	@echo; echo "Variables: MODEL=path (demo), TP=ranks (demo), JOBS=n, PYTEST_ARGS='-k name', HICACHE_SEED=n, ROUNDS=n (soak), SEEDS=n (sim), TORCH_INDEX=url, VENV=folder"

demo: $(stamps)/build $(stamps)/sglang  ## Serve with the real SGLang and show pages coming back; writes demo.json
	$(py) -m bench.demo --json demo.json --tp $(TP) $(if $(MODEL),--model "$(MODEL)")

test: cpp-test pytest  ## Run all tests: C++, Python, and the real server

pytest: $(stamps)/build $(stamps)/sglang
	$(call say,pytest,"unit tests; then those that start the real server")
	$(py) -m pytest --hypothesis-seed=$(HICACHE_SEED) $(PYTEST_ARGS)

cpp-test: build/cpp/.built
	$(call say,ctest,"C++ tests")
	HICACHE_SEED=$(HICACHE_SEED) ctest --test-dir build/cpp --output-on-failure --parallel $(JOBS) --progress

soak: build/cpp/.built  ## Run the C++ tests with new seeds, ROUNDS times
	$(call say,soak,"$(ROUNDS) rounds with new seeds; a failing test prints its own")
	@for round in $$(seq $(ROUNDS)); do \
	  ctest --test-dir build/cpp --output-on-failure --parallel $(JOBS) --quiet || exit 1; done

sim: build/cpp/.built  ## Run SEEDS simulated clusters: faults of all kinds, one seed each
	$(call say,sim,"$(SEEDS) worlds; one that fails prints how to run it again")
	HICACHE_SEED=$(HICACHE_SEED) HICACHE_SIM_WORLDS=$(SEEDS) build/cpp/hicache_sim

test-rdma: build/cpp/.built guest-kernel  ## Run the RDMA tests on soft-RoCE, in a guest kernel (built once, ~12 CPU minutes)
	$(call say,test-rdma,"real verbs in a guest kernel")
	HICACHE_CPP_TESTS=$(abspath build/cpp/hicache_tests) $(py) -m pytest tests/rdma $(PYTEST_ARGS)

guest-kernel: $(stamps)/dev  ## Have the guest kernel of test-rdma, built if it is missing
	@tools/system_packages.sh $(PYTHON) tests/rdma/packages.txt
	@JOBS=$(JOBS) $(py) -m tests.rdma.kernel

bench: $(stamps)/build $(stamps)/sglang  ## Run the benchmarks; writes bench/results/*.json and *.png
	@mkdir -p bench/results
	$(py) -m bench pages --json bench/results/pages.json --plot bench/results/pages.png
	$(py) -m bench hits --json bench/results/hits.json --plot bench/results/hits.png

lint: $(stamps)/build  ## Check style and types
	$(call say,lint,"style and types")
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(filter %.cc %.h,$(cpp_files) $(cpp_tests))

format: $(stamps)/dev  ## Rewrite the sources in the project's style
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(filter %.cc %.h,$(cpp_files) $(cpp_tests))

build: $(stamps)/build  ## Build the core and install the package, editable, into .venv

stubs: $(stamps)/build  ## Write anew what is made from the sources: _core.pyi, the options file, the dashboard
	$(py) tools/stubs.py mooncake_hicache/_core.pyi
	$(py) -m mooncake_hicache config --template > build/single_node.toml && mv build/single_node.toml configs/
	$(py) tools/grafana.py configs/grafana.json

sanitize:  ## Run the C++ tests under the address, undefined and thread sanitizers
	@tools/system_packages.sh $(PYTHON)
	$(MAKE) --no-print-directory build/address/.run build/thread/.run

clean:  ## Remove what was built (.venv stays; remove it by hand)
	rm -rf build $(stamps)/build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# ---- steps

$(stamps)/dev: pyproject.toml system-packages.txt
	@tools/system_packages.sh $(PYTHON)
	$(call say,venv,"$(VENV) with the tools of pyproject.toml's group dev (about a minute)")
	@test -x $(py) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(stamps) build
	@$(py) tools/requirements.py > build/requirements.txt
	$(pip) install --quiet -c tests/serving/constraints.txt -r build/requirements.txt
	@touch $@

$(stamps)/build: $(stamps)/dev $(cpp_files)
	$(call say,build,"the C++ core with $(JOBS) jobs")
	@mkdir -p build && touch $@.begun  # A source that changes meanwhile must count as newer.
	@set -o pipefail; $(pip) install -v --no-build-isolation --no-deps -e . 2>&1 | tee build/install.log \
	  | grep --line-buffered -oE '(\[[0-9]+/[0-9]+\] .*|[^ ]*(error|warning): .*)$$' \
	  || { $(pip) show -q mooncake-hicache && tail -1 build/install.log | grep -q Successfully; } \
	  || { tail -60 build/install.log; exit 1; }
	@mv $@.begun $@

$(stamps)/sglang: $(stamps)/dev tests/serving/requirements.txt tests/serving/constraints.txt
	@tools/install_sglang.sh $(py)
	@touch $@

build/cpp/.built: $(stamps)/dev $(cpp_files) $(cpp_tests)
	$(call say,build,"the C++ tests with $(JOBS) jobs")
	@cmake -S csrc -B build/cpp -G Ninja -DHICACHE_MODULE=OFF -DHICACHE_TESTS=ON > build/cpp-configure.log \
	  || { cat build/cpp-configure.log; exit 1; }
	@touch $@.begun
	cmake --build build/cpp
	@mv $@.begun $@

build/address/.run: sanitizer = address,undefined
build/thread/.run: sanitizer = thread
build/address/.run build/thread/.run: $(cpp_files) $(cpp_tests)
	$(call say,sanitize,"$(sanitizer)")
	@mkdir -p $(@D)
	@cmake -S csrc -B $(@D) -G Ninja -DHICACHE_MODULE=OFF -DHICACHE_TESTS=ON -DHICACHE_SANITIZE=$(sanitizer) \
	  > $(@D)/configure.log || { cat $(@D)/configure.log; exit 1; }
	cmake --build $(@D)
	ctest --test-dir $(@D) --output-on-failure
	@touch $@
