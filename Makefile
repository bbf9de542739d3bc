# `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# How many processes run tests; a file stays with one, for what its tests share, and the long
# ones of tests/integration come first. Those of a deployment wait for much of their time, so that
# three keep two cores busy.
WORKERS ?= 3

# Flower and Ray phone home by default; nothing that we start does.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0
# Tests start some hundred processes, each of which would compile all of its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo lan-demo test check setup benchmark benchmark-peers clean

demo: $(STAMP)
	$(BIN)/python -m fedmoe.simulate +experiment=insight

# A server and three clients in processes of their own, with TLS and keys, on this machine.
lan-demo: $(STAMP)
	PYTHON=$(BIN)/python examples/lan/demo.sh digits

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

benchmark: $(STAMP)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/scale.py

# With blazefl, pfl and fluke, each in an environment of its own (some GB, made once).
benchmark-peers: $(STAMP)
	$(BIN)/python benchmarks/speed.py --peers

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fedmoe needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) benchmarks/.venvs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
