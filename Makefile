# Needs Python 3.11, make and a package index; everything else is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint oldest newest pictures clean

demo: $(READY)
	$(BIN)/python tools/demo.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The suite with the oldest versions that pyproject.toml allows, or with the newest that there are:
# make oldest; make newest PYTHON=python3.13; either with TESTS="tests/test_sampling.py ..." for some.
oldest: RESOLUTION := lowest-direct
newest: RESOLUTION := highest
oldest newest:
	$(PYTHON) -m venv $(VENV)/$@
	$(VENV)/$@/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/$@/bin/uv pip install --quiet --python $(VENV)/$@ --resolution $(RESOLUTION) \
	    -e ".[all,slurm,test]"
	$(VENV)/$@/bin/python -m pytest -n 2 --dist loadfile $(TESTS)

# The pictures of the README.
pictures: $(READY)
	$(BIN)/python tools/demo.py --pictures-only --num 3 --out docs/images

$(READY): requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf $(VENV) output build *.egg-info
