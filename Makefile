# Everything goes through these targets. Each sets up .venv first when it is missing or older than
# pyproject.toml; nothing but make and Python 3.11+ has to be there.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.ready
DEVELOPMENT := $(VENV)/.ready-dev
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))

# Test files run in so many processes: most tests wait, for processes, timers and the network.
JOBS ?= 2

# Extra arguments: make test ARGS="-k router", make demo ARGS="--size 500"
ARGS ?=

# Temporary files go to /tmp, or beside the environment where /tmp is read-only or has less than 1 GiB left.
ifeq ($(TMPDIR),)
ifneq ($(shell test -w /tmp && df -kP /tmp | awk 'END { print ($$4 >= 1048576) }'),1)
export TMPDIR := $(CURDIR)/$(VENV)-tmp
$(shell mkdir -p '$(TMPDIR)')
endif
endif

# What stands beside dialkey with its native part: whatever the targets name.
NATIVE_STACKS := dialkey,dialkey-relayed,aioquic,qh3,tls,blobs-files

.PHONY: help setup demo test bench native test-native lint types check clean

help:
	@echo "make demo    set up and send a real file from one key to another on this machine"
	@echo "make test    set up and run all tests"
	@echo "make check   what continuous integration runs: linters, all tests on two Pythons, the native part"
	@echo "make bench   set up and measure dialkey beside its peers, some minutes"
	@echo "make native  build the optional native part; needs cargo (Rust 1.83 or newer)"
	@echo "make lint    ruff alone        make types   mypy alone        make clean   remove .venv"

demo: $(RUNTIME)
	@$(BIN)/dialkey demo $(ARGS)

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# Once in pure Python, and once with the native part where `make native` has built it.
bench: $(DEVELOPMENT)
	@DIALKEY_NATIVE=0 $(BIN)/python benchmarks/transport.py $(ARGS)
	@! $(BIN)/python -c 'import sys; from dialkey import native; sys.exit(not native.part())' || \
		$(BIN)/python benchmarks/transport.py --stacks $(NATIVE_STACKS) $(ARGS)
	@DIALKEY_NATIVE=0 $(BIN)/python benchmarks/whole_files.py $(filter --quick --smoke,$(ARGS))
	@! $(BIN)/python -c 'import sys; from dialkey import native; sys.exit(not native.part())' || \
		$(BIN)/python benchmarks/whole_files.py $(filter --quick --smoke,$(ARGS))
	@$(BIN)/python benchmarks/blob_import.py

native: $(RUNTIME)
	@command -v cargo >/dev/null || { echo "make native needs cargo, the Rust tool chain" >&2; exit 1; }
	@echo "Building dialkey-native ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps ./native
	@$(BIN)/python -c 'from dialkey import native; print("native part:", native.describe())'

NATIVE_TESTS := tests/native tests/framework/quic tests/framework/endpoint \
	tests/protocols/blobs/test_hash.py tests/protocols/blobs/test_hashing.py \
	tests/protocols/blobs/test_tree.py tests/protocols/blobs/test_prefix_verification.py

# What the native part takes a hand in, with it; `make test` after this uses it, too, unless DIALKEY_NATIVE=0.
test-native: $(DEVELOPMENT)
	$(BIN)/python -c 'from dialkey import native; assert native.part(), native.describe()'
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(NATIVE_TESTS) $(ARGS)

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEVELOPMENT)
	$(BIN)/mypy

setup: $(DEVELOPMENT)

check:
	@.ci/run --as-is

clean:
	rm -rf $(VENV) $(VENV)-*

$(BIN)/python:
ifeq ($(PYTHON),)
	@echo "Python 3.11 or newer was not found; set PYTHON=/path/to/python3" >&2; exit 1
else
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
endif

# pip before 25.1 knows no dependency groups, and every Python here may bring an older one.
$(RUNTIME): pyproject.toml | $(BIN)/python
	@echo "Installing dialkey and what it needs ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable ".[all]"
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@
