# Everything lives in .venv, which each target makes and brings up to date by itself; the tests of the
# Chatterbox engines, which need torch and gigabytes of packages, in .venv-chatterbox.
# Needs Python 3.11 or newer and make; installs nothing outside this directory.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH_BIN := .venv-chatterbox/bin
TORCH_PIP := $(TORCH_BIN)/python -m pip --disable-pip-version-check --quiet
NODE_STAMP := examples/node/node_modules/.stamp
CONFIG ?= pipeline.yaml
TESTS ?= tests
N ?= 10000
SECONDS ?= 60
BOTS := tests/workers/gateway/test_voice_bots.py
# Two at once, file by file, in the order of tests/conftest.py.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
# A test that takes minutes is not stuck.
MINUTES := -o faulthandler_timeout=0

.DEFAULT_GOAL := help
.PHONY: help setup demo run check quick test chatterbox bots simulate kills fuzz clean

help: ## list what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: .venv/.base ## what it takes to speak: .venv with the base installation

demo: .venv/.base ## start the pipeline, speak a paragraph, show latency and queues
	@$(BIN)/python -m launch.demo

run: .venv/.base ## start the pipeline of pipeline.yaml and stay up until Ctrl-C (CONFIG=other.yaml)
	@$(BIN)/launch $(CONFIG)

check: .venv/.dev ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: .venv/.dev ## the tests that take about a second at most (TESTS=tests/ipc)
	$(BIN)/pytest -m "not slow and not sound and not chatterbox" $(BY_FILE) $(TESTS)

test: .venv/.dev .venv-chatterbox/.dev $(NODE_STAMP) ## all tests (TESTS=tests/ipc)
	$(BIN)/pytest -m "not sound and not chatterbox" $(BY_FILE) $(TESTS)
	@$(MAKE) --no-print-directory chatterbox
	$(BIN)/pytest -m sound $(BY_FILE) $(TESTS)

chatterbox: .venv-chatterbox/.dev ## the tests of the Chatterbox engines alone
	files=$$(grep -rl --include='test_*.py' 'mark\.chatterbox' $(TESTS)) || { echo "nothing of Chatterbox in $(TESTS)"; exit 0; }; \
	OMP_NUM_THREADS=1 $(TORCH_BIN)/pytest -m chatterbox $(BY_FILE) $$files

bots: .venv-bots/.dev ## the gateway judged by the clients of LiveKit and pipecat
	.venv-bots/bin/pytest -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning $(BOTS)

simulate: .venv/.dev ## random schedules of crashes, delays, cancels… on all cores (N=100000; SEED=7 replays one)
	$(BIN)/python -m tests.simulate $(if $(SEED),--seed $(SEED),--schedules $(N))

kills: .venv/.dev ## the tests that kill, many times over
	CHATTERLINE_KILLS=25 $(BIN)/pytest $(MINUTES) -n 2 --dist load tests/test_kills.py
	CHATTERLINE_KILLS=25 $(BIN)/pytest $(MINUTES) tests/test_sound_kills.py
	CHATTERLINE_KILLS=50 $(BIN)/pytest tests/launch/test_leftovers.py

fuzz: .venv/.dev ## look for inputs that break what reads them (TARGET=segmenter SECONDS=600)
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS)

clean: ## remove what was installed and built here
	rm -rf .venv .venv-chatterbox .venv-bots build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf examples/node/node_modules

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
		echo "Chatterline needs Python 3.11 or newer, and none is on the PATH (python3: $$(python3 --version 2>&1))."; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python),"; \
		echo "or say where it is: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Python's venv module is not complete (Debian, Ubuntu: apt install python3-venv)."; exit 1; }

.venv/.base: pyproject.toml $(BIN)/python
	@echo "installing Chatterline into .venv"
	@$(PIP) install --editable .
	@touch $@

.venv/.dev: pyproject.toml .venv/.base
	@echo "installing what the tests need into .venv"
	@$(PIP) install --editable '.[dev]'
	@touch $@

.venv-chatterbox/.dev: pyproject.toml $(BIN)/python
	@echo "installing what the tests of Chatterbox need into .venv-chatterbox: about 6 GB, some minutes"
	@test -x $(TORCH_BIN)/python || $(BIN)/python -m venv .venv-chatterbox
	@$(TORCH_PIP) install --editable '.[chatterbox,perf,test]'
	@touch $@

.venv-bots/.dev: pyproject.toml $(BIN)/python
	@echo "installing LiveKit's and pipecat's clients into .venv-bots"
	@test -x .venv-bots/bin/python || $(BIN)/python -m venv .venv-bots
	@.venv-bots/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[bots]'
	@touch $@

# The Node example's package; without Node its test is skipped and says so.
$(NODE_STAMP): $(wildcard examples/node/package.json)
	@if [ -f examples/node/package.json ] && command -v npm >/dev/null; then \
		echo "installing the Node example's package" && \
		npm install --prefix examples/node --no-package-lock --no-audit --no-fund --loglevel=error && touch $@; \
	else echo "no Node here: the test of its example will be skipped"; fi
