# make demo       install what fusing needs, fuse the bundled sample of all four tasks
# make test       install everything, run every test, in two processes of one thread each: two of two would wait for each other
# make pipeline   install what it needs, from the sample's pairs to a report, all four tasks
# make docs       build the site in _docs from the stored notebooks and the docstrings
# make notebooks  run every chapter, store its outputs, export the package, build README.md
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PACKAGING := setup.py settings.ini constraints.txt

.PHONY: demo test pipeline docs notebooks clean

demo: .venv/installed
	$(BIN)/film demo

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

pipeline: .venv/installed-pipeline
	$(BIN)/film pipeline

docs: .venv/installed-docs
	$(BIN)/python tools/docs.py

notebooks: .venv/installed-dev
	$(BIN)/python tools/notebooks.py

.venv/installed: $(PACKAGING)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-pipeline: $(PACKAGING)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[notebooks,train]'
	touch .venv/installed $@

.venv/installed-docs: $(PACKAGING)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch .venv/installed $@

.venv/installed-dev: $(PACKAGING)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed .venv/installed-docs .venv/installed-pipeline $@

clean:
	rm -rf .venv build _docs *.egg-info
