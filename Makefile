# `make` lists the targets. PYTHON chooses the interpreter, and each version gets a virtual
# environment of its own: make test PYTHON=python3.12. LOCKED=1 installs the very releases that
# requirements.lock names: make demo LOCKED=1
PYTHON ?= python3
PYTEST_ARGS ?=
LOCKED ?=
# Of make mutants: how many, and how many at the same time. MUTANTS_SEED=1 draws others.
MUTANTS ?= 100
JOBS ?= 1

# Paths stay relative, so that the repository may lie in a folder with a space in its name.
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-python$(VERSION))
PY := $(VENV)/bin/python

# The stamp of a finished installation says for which Python and in which folder it was made; every
# installation begins by removing it. Where it is missing, or the interpreter or the repository has
# moved since, the environment may be broken anywhere and is made anew.
BASE := $(VENV)/installed
TEST := $(VENV)/installed-with-test
SLOW := $(VENV)/installed-with-test-and-tpu
HF := $(VENV)/installed-with-test-hf-and-eval
FROM_LOCK := $(VENV)/installed-from-lock
STAMPS := $(BASE) $(TEST) $(SLOW) $(HF) $(FROM_LOCK)
BELONGS := "$(VERSION) $$(pwd -P)"
SOUND := $(shell $(PY) -c '' 2>/dev/null && cat $(STAMPS) 2>/dev/null | grep -qxF $(BELONGS) && echo yes)
# What the slow tests need, and those against transformers, includes all that the others need, and
# that all that the demo needs. The lock has what the tests need.
STAMP := $(or $(firstword $(wildcard $(SLOW) $(HF) $(FROM_LOCK) $(TEST))),$(if $(filter test faults mutants lint format,$(MAKECMDGOALS)),$(TEST),$(BASE)))
STAMP := $(if $(filter test-hf bench-check,$(MAKECMDGOALS)),$(HF),$(if $(filter test-slow,$(MAKECMDGOALS)),$(SLOW),$(STAMP)))
ifneq ($(filter-out 0,$(LOCKED)),)
    $(if $(filter test-hf bench-check test-slow,$(MAKECMDGOALS)),$(error $(MAKECMDGOALS) needs what requirements.lock leaves out; leave out LOCKED=$(LOCKED)))
    STAMP := $(FROM_LOCK)
endif

# The build for CPUs, from the index of its makers: the one on the common index brings gigabytes of
# CUDA. macOS has no other than that for CPUs.
TORCH ?= torch==2.13.0$(if $(filter Darwin,$(shell uname -s)),,+cpu)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

TRAIN := $(PY) -m bottleneck train --config=configs/nano.py
# What two cores do in a minute each; compile_table takes a quarter of an hour, and libtpu.
BENCHMARKS := loss rank_sweep spectrum input_pipeline checkpoint start_up compile_time fits ngrams
KNOWN := $(PY) -m bottleneck train --config=configs/known_rank.py

.DEFAULT_GOAL := help
.PHONY: help install lock demo calibration test pytest test-hf test-slow faults mutants bench bench-gpu bench-check lint format audit clean FORCE

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## Make the environment, .venv, and nothing else.

lock: ## Write requirements.lock, keeping what fits of the old one; delete that for the newest.
	"$(PYTHON)" -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install -qq --disable-pip-version-check uv
	.venv-lock/bin/uv pip compile setup.cfg --extra test --quiet --universal --python-version 3.11 \
	    --generate-hashes --custom-compile-command 'make lock' --output-file requirements.lock
	rm -rf .venv-lock

demo: $(STAMP) ## Train a small model with three head ranks and write a report.
	$(TRAIN) --workdir=runs/demo/rank-4 --config.model.head_rank=4
	$(TRAIN) --workdir=runs/demo/rank-32 --config.model.head_rank=32
	$(TRAIN) --workdir=runs/demo/full
	$(PY) -m bottleneck analyze runs/demo

calibration: $(STAMP) ## Train heads around the known rank of a language, and write a report.
	for rank in 3 4 5 6 7 8; do \
	    $(KNOWN):6 --workdir=runs/calibration/6/rank-$$rank --config.model.head_rank=$$rank || exit; \
	done
	for rank in 9 10 11 12 13 14; do \
	    $(KNOWN):12 --workdir=runs/calibration/12/rank-$$rank --config.model.head_rank=$$rank || exit; \
	done
	$(PY) -m bottleneck analyze runs/calibration/6 runs/calibration/12

test: $(STAMP) ## Lint and run the tests; PYTEST_ARGS="-k head" and the like go to pytest.
	@$(MAKE) --no-print-directory -j 2 pytest lint

pytest: $(STAMP)
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15 $(PYTEST_ARGS)

test-slow: $(STAMP) ## Large compiles for TPUs that are not here, and other checks that take minutes.
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m slow $(PYTEST_ARGS)

test-hf: $(STAMP) ## Tests against transformers and its evaluation harness; installs torch, for CPUs.
	@$(PY) -c 'import lm_eval, torch, transformers'
	$(PY) -m pytest -m hf $(PYTEST_ARGS)

faults: $(STAMP) ## Kill, stop and damage whatever can be, often; the table goes to runs/faults.md.
	FAULTS=full $(PY) -m pytest tests/faults $(PYTEST_ARGS)
	HYPOTHESIS_PROFILE=many $(PY) -m pytest -m "hypothesis and not slow" $(PYTEST_ARGS)

mutants: $(STAMP) ## Put errors into the code, and count those that the tests find: runs/mutants.md.
	@$(PY) -c 'import cosmic_ray' 2>/dev/null || \
	    $(PY) -m pip install -qq --disable-pip-version-check --editable '.[test,mutants]'
	$(PY) tests/support/mutants.py --count=$(MUTANTS) --jobs=$(JOBS)

bench: $(STAMP) ## Measure what suits this machine, and write benchmarks/RESULTS.md.
	for question in $(BENCHMARKS); do $(PY) benchmarks/$$question.py || exit; done
	if $(PY) -c 'import torch' 2>/dev/null; then $(PY) benchmarks/train_step.py --turns 9; \
	else echo 'train_step, against PyTorch, is left out: make test-hf installs torch'; fi
	$(PY) benchmarks/results_page.py

bench-gpu: $(STAMP) ## The train step and the loss at Pythia's sizes, on a machine with a CUDA GPU.
	$(PY) benchmarks/gpu.py
	$(PY) benchmarks/results_page.py

bench-check: $(STAMP) ## Fail where the train step fell behind its recorded ratio to PyTorch's.
	$(PY) benchmarks/check.py

lint: $(STAMP) ## Check format, style, the order of imports, and types.
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m mypy

format: $(STAMP) ## Put the code into the one format, and mend what ruff can mend.
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

# OSV rather than pip-audit's default, PyPI: without a network that one skips every package and says
# that nothing was found.
audit: $(STAMP) ## Look for known vulnerabilities in what is installed; needs a network.
	@$(PY) -c 'import pip_audit' 2>/dev/null || \
	    $(PY) -m pip install -qq --disable-pip-version-check pip-audit
	$(PY) -m pip_audit --vulnerability-service=osv --skip-editable

clean: ## Remove environments and caches; runs/ stays.
	rm -rf .venv .venv-* build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache \
	    .pytest_cache .ruff_cache
	find bottleneck configs tests -name __pycache__ -prune -exec rm -rf {} +

$(BASE): EXTRAS :=
$(TEST): EXTRAS := [test]
$(SLOW): EXTRAS := [test,tpu]
$(HF): EXTRAS := [test,hf,eval]
$(HF): FIRST := --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)'
# An environment that stands may hold what the lock does not name, so this one is always made anew.
$(FROM_LOCK): SOUND :=
$(FROM_LOCK): FIRST := --require-hashes --requirement requirements.lock
$(FROM_LOCK): NO_DEPS := --no-deps
$(FROM_LOCK): requirements.lock
$(STAMP): setup.cfg pyproject.toml $(if $(SOUND),,FORCE)
	$(if $(VERSION),,$(error $(PYTHON) does not run; name a Python that does: make $(MAKECMDGOALS) PYTHON=/path/to/python3))
	$(if $(filter 2.% 3.4 3.5 3.6 3.7 3.8 3.9 3.10,$(VERSION)),$(error Python 3.11 or newer is needed and $(PYTHON) is $(VERSION); name another: make $(MAKECMDGOALS) PYTHON=python3.12))
	$(if $(shell "$(PYTHON)" -c 'import ensurepip, venv' 2>&1),$(error $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python$(VERSION)-venv))
	@echo "Installing into $(VENV); the first time this takes some minutes"
	@rm -f $(STAMPS)
	@$(if $(SOUND),$(PY) -m pip --version >/dev/null 2>&1 ||) "$(PYTHON)" -m venv --clear $(VENV)
	@$(if $(FIRST),$(PY) -m pip install -qq --disable-pip-version-check $(FIRST))
	@$(PY) -m pip install -qq --disable-pip-version-check $(NO_DEPS) --editable '.$(EXTRAS)'
	@echo $(BELONGS) > $@
