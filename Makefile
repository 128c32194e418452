# make demo   sets everything up and runs the main job on real photographs (under demo/)
# make test   sets up and runs the tests; test-long those that take minutes
# make env    the set-up alone: .venv with the package and its extras
# Where python3 is not 3.11 to 3.13, the first of python3.13, python3.12 and python3.11 is taken; or PYTHON=...

find_python = for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && exit; done
PYTHON ?= $(shell $(find_python))
# tensorflow[and-cuda] is several gigabytes: only where a driver answers.
EXTRAS := demo,serving,dev$(shell nvidia-smi >/dev/null 2>&1 && echo ,cuda)
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-long lint env clean

demo: env
	$(RUN) tools/demo.py --demo_dir=demo

test: lint
	$(RUN) -m pytest -m 'not long' --numprocesses=2 --dist=loadfile

test-long: env
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS),beam,s3,long]'
	$(RUN) -m pytest -m long --numprocesses=2 --dist=loadfile

lint: env
	$(VENV)/bin/ruff check --quiet --line-length 120 --select E,F,I,UP,B,W \
		--config lint.isort.force-sort-within-sections=true --config lint.isort.order-by-type=false .

env: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 to 3.13 with venv found; name one: make PYTHON=/path/to/python3.12' >&2; exit 2; }
	@echo 'Setting up $(VENV) with $(PYTHON): about two minutes and 2.5 GB.'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) demo *.egg-info .pytest_cache .ruff_cache
