# Two commands do everything on a fresh machine with Python 3.10-3.12: make demo, make test.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The GPU build of TensorFlow only where an NVIDIA GPU answers.
DEVICE := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
STAMP := $(VENV)/.installed-$(DEVICE)

.PHONY: demo test lint install clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "keras_stss needs Python 3.10, 3.11 or 3.12; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing the project and its dependencies ($(DEVICE) TensorFlow) …"
	$(BIN)/python -m pip install --quiet --progress-bar off --editable '.[$(DEVICE),test]'
	@touch $@

demo: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: $(STAMP) lint
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --config .importlinter

clean:
	rm -rf $(VENV) build dist *.egg-info
