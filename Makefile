# Two commands do everything on a fresh machine with Python 3.10-3.12: make demo, make test.

# The first interpreter that fits; another: make PYTHON=/path/to/python3.11
FITS := -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do $$p $(FITS) 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The GPU build of TensorFlow only where an NVIDIA GPU answers.
DEVICE := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
STAMP := $(VENV)/.installed-$(DEVICE)

.PHONY: install demo test lint clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): setup.py pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) $(FITS) || { \
	  echo "keras_stss needs Python 3.10, 3.11 or 3.12 with venv; found none. Name one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing the project and its dependencies ($(DEVICE) TensorFlow) …"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --progress-bar off --editable '.[$(DEVICE),test]'
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
