# Every target does its own set-up into .venv; `make help` lists them.
PYTHON ?= python3
REQUIREMENTS ?= requirements.txt
BIN := .venv/bin
TESTS = $(BIN)/python -m pytest -n 2 --dist worksteal
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help run heatmap test test-all stress coverage mutants advisories lint lab bench baseline crossval \
  zoo outputs report demo docs picture clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

run: .venv/ready  ## execute both notebooks; models go to models/, executed copies to runs/
	@$(BIN)/python -m mri check
	@echo "main.ipynb trains two networks: up to 5 minutes on two cores. models_compare.ipynb: 1 minute."
	@$(BIN)/python .ci/execute.py main.ipynb models_compare.ipynb
	@echo "Models with their cards are in models/, executed notebooks in runs/. Read them with make"
	@echo "report, or open them with make lab."

heatmap: .venv/ready  ## ask a network that comes with the repository about one slice
	@$(BIN)/python -m mri predict

test: .venv/ready  ## run what matters most (five minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS) -m "not slow and not stress and not real_data"

test-all: .venv/ready  ## run every test, those on the real slices too (half an hour)
	$(TESTS) -m "not stress"

stress: .venv/ready  ## kill processes fifty times, read 100,000 slices (an hour)
	$(BIN)/python -m pytest -m stress

coverage: .venv/ready  ## branches of mri/ that the tests go through
	$(TESTS) -m "not stress" --cov --cov-report=term-missing

mutants: .venv/ready  ## change lines one at a time: which changes do the tests notice (an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "mutmut~=3.8"
	$(BIN)/python .ci/mutants.py evaluation/metrics
	$(BIN)/python .ci/mutants.py subjects/recovery gradcam/cam --sample 40

advisories: .venv/ready  ## ask pip-audit about the pinned versions; needs the internet
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit -r .ci/requirements.lock --require-hashes --disable-pip

bench: .peers/ready  ## measure against peers, write tests/benchmarks/results.md (half an hour)
	.peers/bin/python tests/benchmarks/report.py $(BENCH)

lint: .venv/ready  ## check and format the code, check its types
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

lab: .venv/ready  ## open JupyterLab
	$(BIN)/jupyter lab main.ipynb

baseline: .venv/ready  ## train the benchmarks' baseline under both protocols (about 10 minutes)
	$(BIN)/python -m mri train baseline --protocol image
	$(BIN)/python -m mri train baseline --protocol subject

crossval: .venv/ready  ## tables of all people, from kept logits (mri folds and mri people make these)
	$(BIN)/python -m mri folds --table

zoo: .venv/ready  ## train every network under both protocols (hours; a killed run goes on)
	$(BIN)/python -m mri zoo
	$(BIN)/python -m mri zoo --table

report: .venv/ready  ## notebooks and model cards as pages for a browser, into runs/
	$(BIN)/python -m mri report

demo: .venv/ready  ## explore heatmaps and ask about a slice, in a browser (installs Voilà)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "voila~=0.5.13"
	$(BIN)/python -m voila demo.ipynb $(VOILA)

docs: .venv/ready  ## the functions as pages for a browser, into runs/docs/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pdoc
	$(BIN)/python -m pdoc --docformat numpy --output-directory runs/docs \
	  $(subst /,.,$(basename $(wildcard mri/[a-z]*.py mri/*/[a-z]*.py)))

outputs: run  ## make the executed notebooks the committed ones
	cp runs/main.ipynb runs/models_compare.ipynb .

picture: .venv/ready  ## make the README's pictures anew, from models/zoo/ and main.ipynb
	$(BIN)/python .ci/picture.py

clean:  ## remove .venv, .peers and runs; data and models stay
	rm -rf .venv .peers runs

# On a bare Debian, venv and OpenCV's system libraries may be missing: installed where one may
# install, else named.
.venv/ready: $(REQUIREMENTS) tests/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv .venv 2>/dev/null || { rm -rf .venv; $(call system,python3-venv) && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(filter %.lock,$(REQUIREMENTS)),--require-hashes -r $(REQUIREMENTS),-r $(REQUIREMENTS) -r tests/requirements.txt)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { $(call system,libgl1 libglib2.0-0 libsm6 libxext6) && $(BIN)/python -c 'import cv2'; }
	@touch $@

# What the benchmarks measure against, apart from what the project needs. grad-cam asks for
# torchvision, which only its examples use.
.peers/ready: .venv/ready tests/benchmarks/requirements.txt
	@$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	for peer in $$(sed 's/ *#.*//' tests/benchmarks/requirements.txt); do \
	  .peers/bin/python -m pip install --quiet --disable-pip-version-check $$peer \
	    || echo "$$peer cannot be installed: its lines will say so"; \
	done
	-.peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "grad-cam~=1.5.7"
	@touch $@

define system
if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
  then apt-get -qq update && apt-get -qq install -y --no-install-recommends $(1) >/dev/null; \
  else echo "Missing system packages; run: sudo apt-get install $(1)" >&2; false; fi
endef
