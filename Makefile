# Two commands: `make compare` and `make test`.  Both make .venv first where it is missing or old.
PYTHON ?= python3
DEVICE ?= auto
RUNS ?= runs
BIN := .venv/bin

.PHONY: install compare test check mnist bench results studies readme clean

install: .venv/.installed

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

compare: install
	$(BIN)/zoo compare --out $(RUNS)/card --device $(DEVICE) --resume

test: install
	$(BIN)/python -m pytest -n 2

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 -m 'not slow'

mnist: install
	$(BIN)/zoo compare mnist --out $(RUNS)/mnist --device $(DEVICE) --resume

# A step of SVI side by side with what one would use instead; wants an idle machine.
bench: install
	$(BIN)/zoo bench --check --out $(RUNS)/bench --device $(DEVICE)

# The committed records, and the part of README that is made from them; on a GPU:
# make results DEVICE=cuda RUNS=runs-cuda
results: compare mnist
	$(BIN)/python -m experiments.report.readme $(RUNS)/card $(RUNS)/mnist

# Every study in full, one after the other, and the parts of README and docs made from them.
studies: install
	for name in $$($(BIN)/zoo study --list | cut -d ' ' -f 1); do \
		test -f $(RUNS)/studies/$$name/record.json || $(BIN)/zoo study $$name --out $(RUNS)/studies/$$name --device $(DEVICE) || exit 1; \
	done
	$(BIN)/python -m experiments.report.readme $(RUNS)/studies/*

readme: install
	$(BIN)/python -m experiments.report.readme

clean:
	rm -rf .venv runs build *.egg-info
