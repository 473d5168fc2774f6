# make demo    no GPU: label, train, evaluate and serve on this machine
# make test    every check and test
# make check   the same without what starts Ray, DeepSpeed, vLLM or a browser
# make nano-benchmark   score the nano captioner of the package on its frozen benchmark
# make faults  kill parts of labeling jobs and of the caption service again and again, and count what was lost
# make gpu-check   on a machine with an NVIDIA GPU: attention, training, export, engine, service and speed
# make serve   the captioner's HTTP API on localhost:8000, until Ctrl-C
# make setup   only install (every target does it first, once)
# make clean   remove the environment and the caches; runs/ stays
#
# PYTHON=python3.11   the interpreter to make .venv with
# TEST_PROCESSES=2       processes that run tests side by side; more need about 6 GB of memory each
# LOCK=requirements-gpu.lock   on a machine with an NVIDIA GPU
# MODEL=runs/demo/export   what make serve serves; without it what serve_apps/captioner.yaml names: the package's nano

PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK ?= requirements.lock
VENV := .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2
# One process runs all tests of a module: what its fixtures start is started once.
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
# Named after the content it was installed from: a second make installs nothing, another lock or branch does.
STAMP := $(VENV)/installed-$(shell cat $(LOCK) pyproject.toml | cksum | tr ' ' '-')

# Chosen on purpose, not left to Ray's default: a Ray started here asks for the token in ~/.ray, which it makes
# itself. The tests switch it off (tests/conftest.py): their Ray dies with them.
export RAY_AUTH_MODE ?= token
export RAY_USAGE_STATS_ENABLED ?= 0
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH ?= ureca.serving.proxy:middlewares
# Several processes with several threads each run many times slower on few cores than with one each.
export OMP_NUM_THREADS ?= 1

.PHONY: setup lint check test demo nano-benchmark faults gpu-check serve clean

setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "error: Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1). Install it (uv python install 3.11," \
	       "pyenv install 3.11, or your system's package) and name it: make setup PYTHON=python3.11" >&2; exit 2; }
	@echo "installing $(LOCK) into $(VENV): about 3 minutes and 4 GB, once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r $(LOCK)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(PYTEST) -m "not slow"

test: lint
	$(PYTEST)

demo: setup
	@$(BIN)/python jobs/demo.py

nano-benchmark: setup
	@$(BIN)/python jobs/nano_benchmark.py

faults: setup
	$(BIN)/python benchmarks/labeling_faults.py
	$(BIN)/python benchmarks/serving_faults.py
	$(BIN)/python benchmarks/serving_orderly.py

gpu-check: setup
	@$(BIN)/python benchmarks/gpu_check.py

serve: setup
	$(BIN)/ureca serve serve_apps/captioner.yaml $(if $(MODEL),--model $(MODEL))

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache platform/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
