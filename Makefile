# Two commands do everything on a fresh machine with Python 3.10-3.12: make demo, make test.

# The first interpreter that fits; another: make PYTHON=/path/to/python3.11
FITS := -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do $$p $(FITS) 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The GPU build of TensorFlow only where an NVIDIA GPU answers.
DEVICE := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
STAMP := $(VENV)/.installed-$(DEVICE)
NATIVE := keras_stss/ops/native
LIBRARY := $(VENV)/.native-$(DEVICE)

.PHONY: install demo test lint bench peers clean
.DEFAULT_GOAL := install

install: $(STAMP) $(LIBRARY)

$(STAMP): setup.py pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) $(FITS) || { \
	  echo "keras_stss needs Python 3.10, 3.11 or 3.12 with venv; found none. Name one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing the project and its dependencies ($(DEVICE) TensorFlow) …"
# Without the native library, which would have pip fetch a TensorFlow of its own for the build.
	KERAS_STSS_NATIVE=0 PYTHONWARNINGS=ignore \
	  $(BIN)/python -m pip install --quiet --progress-bar off --editable '.[$(DEVICE),test]'
	@touch $@

# Everything works without a compiler too; the line that this prints says so.
$(LIBRARY): $(STAMP) $(NATIVE)/build.py $(wildcard keras_stss/ops/cc/*)
	@echo "compiling the native library (a minute or two) …"
	$(BIN)/python $(NATIVE)/build.py --optional
	@touch $@

demo: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: install lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config .importlinter

# The tables of docs/benchmarks.md, measured here; beside the peers where `make peers` has built their environments.
bench: install
	@mkdir -p benchmarks/results
	@for kind in stss block model data train; do \
	  $(BIN)/keras-stss bench $$kind --out benchmarks/results/$$kind.json --markdown docs/benchmarks.md || exit; done

# Other people's code to compare with, in environments of its own: never a dependency.
peers:
	@sh benchmarks/peers/make.sh

clean:
	rm -rf $(VENV) build dist *.egg-info $(NATIVE)/_native.*
