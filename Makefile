# Every command sets up .venv on its first call. `make` alone lists the commands.
# make ... PYTHON=/path/to/python3.12 picks the Python (3.11 or 3.12).
export PYTHON
export PATH := $(CURDIR)/.venv/bin:$(PATH)
MAKEFLAGS += --no-print-directory
root := $(filter 0,$(shell id -u))

.PHONY: help demo lab test test-fast test-spawn test-long bench gpu audit docs format export browser clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: .venv/.stamp  ## simulate, label a few colonies, train, report
	@.venv/bin/ipb-demo

lab: .venv/.stamp  ## open the notebooks in JupyterLab
	@.venv/bin/jupyter lab $(if $(root),--allow-root)

test: .venv/.stamp  ## is the library in step, do notebooks and tests pass
	@.ci/test

test-fast: .venv/.stamp  ## the tests without training and browser, in three minutes
	@.ci/test fast

test-spawn: .venv/.stamp  ## the same as on Windows: no process is a copy, kernels are spoken to by ports
	@IPB_SPAWN=1 .ci/test fast

test-long: .venv/.stamp  ## the tests that take minutes
	@.venv/bin/pytest tests -m long

bench: .venv/.stamp  ## the benchmarks, or some: make bench ONLY=demo
	@.venv/bin/python benchmarks/run.py --only=$(ONLY)

gpu: .venv/.stamp  ## what needs a GPU: does it agree with the CPU, how fast is it, the paper's networks
	@.venv/bin/python benchmarks/gpu.py

audit: .venv-audit/.stamp  ## have the pinned packages known vulnerabilities? (asks PyPI; one without an answer is an error)
	@.venv-audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

docs: .venv-docs/.stamp  ## the documentation site in _docs/site, without executing anything; its links are checked
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python .ci/docs.py

format: .venv/.stamp  ## format notebooks, tests and benchmarks, and list what ruff finds
	@.venv/bin/ruff format -q && .venv/bin/ruff check

export: .venv/.stamp  ## make ipb_nb/ and README.md from the notebooks
	@.ci/export

browser:  ## install the browser that some tests need (Debian, as root)
	@.ci/browser

clean:  ## remove caches, build folders and runs/demo; .venv and .venv-docs stay
	@rm -rf build dist _docs _proc *.egg-info .pytest_cache runs/demo
	@find . -name ".venv*" -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

.venv-docs/.stamp: docs/requirements.txt
	@$${PYTHON:-python3} -m venv .venv-docs && .venv-docs/bin/python -m pip install -q -r docs/requirements.txt
	@touch .venv-docs/.stamp

.venv-audit/.stamp:
	@$${PYTHON:-python3} -m venv .venv-audit && .venv-audit/bin/python -m pip install -q pip-audit==2.10.1
	@touch .venv-audit/.stamp

.venv/.stamp: constraints.txt settings.ini setup.py
	@.ci/setup
