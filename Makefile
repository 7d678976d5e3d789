# pancseg: `make help` lists what there is. Everything happens in .venv.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
PACKAGE := $(VENV)/.package
STAMP := $(VENV)/.installed
# uv, where it is installed, takes seconds for what takes pip minutes
UV := $(shell command -v uv)
PIP := PIP_CONSTRAINT=constraints.txt UV_CONSTRAINT=constraints.txt \
  $(if $(UV),uv pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)
# a process a core; a file's tests stay together, for they share what the first of them made
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile
PYTEST := $(BIN)/python -m pytest $(SIDE_BY_SIDE)

.DEFAULT_GOAL := help
.PHONY: help install demo test slow fuzz lint check format wheel release lowest newest storm audit docs slurm constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv with pancseg (editable) and exact versions

# the package alone, which is all that the demo needs
$(PACKAGE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pancseg needs Python 3.11 or later, $(PYTHON) is older; try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 -e .
	@touch $@

$(STAMP): $(PACKAGE)
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(PACKAGE) $(DEMO)/dicom  ## phantoms as DICOM, prepared, trained on, scored: a few minutes on two cores
	$(BIN)/python -m pancseg.prepare data=group64 source=dicom source.images=$(DEMO)/dicom/images \
	  source.labels=$(DEMO)/dicom/labels data.root=$(DEMO)/prepared data.tail=shift privacy=none
	rm -rf $(DEMO)/run
	$(BIN)/python -m pancseg.train experiment=demo data.root=$(DEMO)/prepared hydra.run.dir=$(DEMO)/run
	$(BIN)/python -m pancseg.evaluate checkpoint=$(DEMO)/run/checkpoints/best.ckpt subset=test
	@ls $(DEMO)/run/history.png $(DEMO)/run/scores/test/*.png

# written under another name first: a folder of that name is whole
$(DEMO)/dicom: | $(PACKAGE)
	rm -rf $(DEMO)/dicom $(DEMO)/dicom.partial
	$(BIN)/python -m pancseg.phantom out=$(DEMO)/dicom.partial patients=32 seed=1 shape=[128,128,96] spacing_mm=[3,3,3]
	mv $(DEMO)/dicom.partial $(DEMO)/dicom

test: $(STAMP)  ## the tests
	$(PYTEST) $(ARGS)

slow: $(STAMP)  ## the tests that take long
	$(PYTEST) -m slow

fuzz: $(STAMP)  ## 25,000 damaged inputs: a few minutes
	$(BIN)/python -m pytest -m fuzz -s

storm: $(STAMP)  ## kill -9 at random moments and full disks: a few minutes
	$(BIN)/python -m pytest -m 'storm or slow' -s tests/storm

# Debian's Slurm is installed where it is missing and can be; no service of it is left running
slurm: $(STAMP)  ## a real Slurm on loopback, and the tests on it
	@command -v slurmctld slurmd munged >/dev/null 2>&1 || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
	  { apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 || true
	$(BIN)/python -m pytest -m slurm -rs

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## style, types, tests and coverage
	$(PYTEST) --cov --cov-report=term

docs: $(STAMP)  ## the documentation site: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: $(STAMP)  ## put the source in the house's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## dist/pancseg-*.whl
	$(BIN)/python -m build --wheel --installer pip

release: check  ## VERSION=0.3.0: check, number, build wheel and sdist
	$(BIN)/python .ci/release.py $(VERSION)

# torch stays: of earlier versions there are builds with CUDA only, or none for the Python in use
lowest:  ## the tests with the lowest versions that pyproject.toml allows, torch aside
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check uv torch==2.13.0
	echo torch==2.13.0 > .venv-lowest/torch.txt
	.venv-lowest/bin/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct --extra dev \
	  --override .venv-lowest/torch.txt pyproject.toml -o .venv-lowest/all.txt
	grep -vE '^(torch==|triton|nvidia|cuda)' .venv-lowest/all.txt > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check --no-deps -r .venv-lowest/lowest.txt -e .
	.venv-lowest/bin/python -m pytest $(SIDE_BY_SIDE) -W default  # old packages warn of newer ones they stand on

newest:  ## the tests with the newest versions that pyproject.toml allows, torch aside
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -e '.[dev]'
	.venv-newest/bin/python -m pytest $(SIDE_BY_SIDE)

constraints: $(STAMP)  ## write the versions installed now to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.new
	mv constraints.new constraints.txt

# pip-audit calls a package that it could not look up no error unless it is strict
AUDIT = $(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip --strict --progress-spinner off
audit: $(STAMP)  ## known weaknesses of the versions in constraints.txt; needs pypi.org or api.osv.dev
	@for service in pypi osv; do \
	  told=$$($(AUDIT) --vulnerability-service $$service 2>&1) && { echo "$$told"; exit 0; }; \
	  case "$$told" in *"Fix Versions"*) echo "$$told"; exit 1;; esac; \
	  echo "$$told" | tail -n 1 >&2; \
	done; echo "NOT AUDITED: neither pypi.org nor api.osv.dev could be asked about every package" >&2; exit 1

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-lowest .venv-newest $(DEMO) build dist .coverage* .mypy_cache .pytest_cache .ruff_cache
