# pancseg: `make help` lists what there is. Everything happens in .venv.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test slow fuzz lint check format wheel constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv with pancseg (editable) and exact versions

# pancseg itself is installed apart: the constraints do not know it
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pancseg needs Python 3.11 or later, $(PYTHON) is older; try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP) $(DEMO)/dicom  ## phantoms as DICOM, prepared, trained on, scored: a few minutes on two cores
	$(BIN)/python -m pancseg.prepare data=group64 source=dicom source.images=$(DEMO)/dicom/images \
	  source.labels=$(DEMO)/dicom/labels data.root=$(DEMO)/prepared data.tail=shift privacy=none
	rm -rf $(DEMO)/run
	$(BIN)/python -m pancseg.train experiment=demo data.root=$(DEMO)/prepared hydra.run.dir=$(DEMO)/run
	$(BIN)/python -m pancseg.evaluate checkpoint=$(DEMO)/run/checkpoints/best.ckpt subset=test
	@ls $(DEMO)/run/history.png $(DEMO)/run/scores/test/*.png

# written under another name first: a folder of that name is whole
$(DEMO)/dicom: | $(STAMP)
	rm -rf $(DEMO)/dicom $(DEMO)/dicom.partial
	$(BIN)/python -m pancseg.phantom out=$(DEMO)/dicom.partial patients=32 seed=1 shape=[128,128,96] spacing_mm=[3,3,3]
	mv $(DEMO)/dicom.partial $(DEMO)/dicom

test: $(STAMP)  ## the tests
	$(BIN)/python -m pytest

slow: $(STAMP)  ## the tests that take long
	$(BIN)/python -m pytest -m slow

fuzz: $(STAMP)  ## 25,000 damaged inputs: a few minutes
	$(BIN)/python -m pytest -m fuzz -s

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## style, types, tests and coverage
	$(BIN)/python -m pytest --cov --cov-report=term

format: $(STAMP)  ## put the source in the house's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## dist/pancseg-*.whl
	$(BIN)/python -m build --wheel --installer pip

constraints: $(STAMP)  ## write the versions installed now to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(DEMO) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache
