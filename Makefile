# The commands: make quickstart, make experiments, make test, make docs, make format. Each makes
# .venv when it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
# Versions to keep to, such as .ci/oldest.txt; by default the newest.
CONSTRAINTS ?=
INSTALL := $(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: quickstart experiments test test-all core oldest package benchmark docs lint format clean

$(VENV)/installed: setup.cfg setup.py pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(INSTALL) --editable '.[plot,train]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) --editable '.[test]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) --editable '.[docs]'
	touch $@

# Peers that tests compare with; on machines without a CPU build of PyTorch this is a large download.
$(VENV)/installed-peers: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps torchattacks
	# After torchattacks, which brings an older robustbench of its own.
	$(BIN)/python -m pip install --quiet --no-deps robustbench==1.1.1 torchvision==0.28.0 timm==1.0.31
	touch $@

# Trains AT and AT-AWP on handwritten digits side by side, evaluates both, prints one table, draws
# the learning curves and the loss around the weights.
quickstart: $(VENV)/installed
	@mkdir -p $(RUNS)
	@$(BIN)/awp-jax train --config=configs/quickstart.py:at --workdir=$(RUNS)/at > $(RUNS)/train-at.log 2>&1 \
	& at=$$!; \
	$(BIN)/awp-jax train --config=configs/quickstart.py:at-awp --workdir=$(RUNS)/at-awp || exit 1; \
	wait $$at || { cat $(RUNS)/train-at.log; exit 1; }
	@$(BIN)/awp-jax evaluate --workdir=$(RUNS)/at > $(RUNS)/at.log 2>&1 & at=$$!; \
	$(BIN)/awp-jax evaluate --workdir=$(RUNS)/at-awp > $(RUNS)/at-awp.log 2>&1 \
	|| { cat $(RUNS)/at-awp.log; exit 1; }; \
	wait $$at || { cat $(RUNS)/at.log; exit 1; }
	@$(BIN)/awp-jax landscape --workdir=$(RUNS)/at,$(RUNS)/at-awp --points=21 --draws=3 --examples=300 \
	--steps=7 > $(RUNS)/landscape.log 2>&1 || { cat $(RUNS)/landscape.log; exit 1; }
	@$(BIN)/awp-jax report --workdir=$(RUNS)/at,$(RUNS)/at-awp --output=$(RUNS)/report

# Every table and figure of the papers, and the comparison, at the smallest scale: shows that they
# run, nothing else. It compiles far more than it computes, so code is generated cheaply and kept.
# Two processes (3 to 4 minutes of processor time each, with nothing kept from before) share the
# work directory and its runs.
experiments: $(VENV)/installed
	@export XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true\
	 --xla_cpu_parallel_codegen_split_count=1"; \
	export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.1; \
	run="$(BIN)/python -m experiments.run --scale=smoke --workdir=runs/smoke"; began=$$(date +%s); \
	mkdir -p runs; \
	$$run neurips2020 ijcai2022 comparison > runs/smoke.log 2>&1 & other=$$!; \
	$$run iccv2021 arxiv_v1; first=$$?; \
	wait $$other; second=$$?; cat runs/smoke.log; \
	echo "$$(( $$(date +%s) - began )) seconds"; test $$first = 0 && test $$second = 0

test: $(VENV)/installed-peers lint
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=12

# With the tests that are marked exhaustive, and more kills.
test-all: $(VENV)/installed-peers lint
	AWP_JAX_KILLS=25 $(BIN)/python -m pytest --numprocesses=2 --dist=worksteal -m ""

core: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses=2 -m core

# The same with the oldest versions that setup.cfg allows; on Python 3.11 or 3.12, as numpy's is of 2024.
oldest:
	$(MAKE) core CONSTRAINTS=.ci/oldest.txt VENV=.venv-oldest

# Builds the wheel and uses it outside of the clone.
package:
	PYTHON=$(PYTHON) .ci/package

# Training steps against PyTorch, memory and growth, on an idle machine; results go into benchmarks/.
# On a GPU: sh benchmarks/gpu.sh; the plan of a step for one needs jax[cuda13], and says so.
benchmark: $(VENV)/installed-peers
	$(BIN)/python benchmarks/training.py --out=benchmarks/training.json
	$(BIN)/python benchmarks/memory.py --out=benchmarks/memory.json
	$(BIN)/python benchmarks/growth.py --out=benchmarks/growth.json
	$(BIN)/python benchmarks/plan.py

# The site, into docs/_build/html; a warning fails. Its tutorials run (six minutes) where one of them
# changed; EXECUTE=off shows them without outputs. One at a time: two that begin at once break the
# cache of outputs.
EXECUTE ?= cache
docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet \
	--define=nb_execution_mode=$(EXECUTE) docs docs/_build/html

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs docs/_build .pytest_cache .mypy_cache .ruff_cache *.egg-info
