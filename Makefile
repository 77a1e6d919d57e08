# make demo       install what fusing needs, fuse the bundled sample of all four tasks
# make test       install everything, run every test
# make notebooks  run every chapter, store its outputs, export the package, build README.md
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PACKAGING := setup.py settings.ini constraints.txt

.PHONY: demo test notebooks clean

demo: .venv/installed
	$(BIN)/film demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

notebooks: .venv/installed-dev
	$(BIN)/python tools/notebooks.py

.venv/installed: $(PACKAGING)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: $(PACKAGING)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed $@

clean:
	rm -rf .venv build *.egg-info
