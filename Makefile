# Everything a fresh checkout needs: `make demo` and `make test` set .venv up first where needed.

PYTHON ?= python3
DEMO ?= output/demo
VENV := .venv
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished

# The stamp of a .venv whose Python no longer runs is worth nothing.
$(shell [ ! -e $(STAMP) ] || $(BIN) -c "" 2>/dev/null || rm -f $(STAMP))

.PHONY: help demo test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    train, evaluate and segment pictures on a small generated data set"
	@echo "make test    lint and the whole test suite"
	@echo "make lint    ruff: rules and formatting"
	@echo "make clean   remove .venv, $(DEMO), caches and build products"
	@echo "All but clean set up .venv first; choose its Python by PYTHON=python3.12 (3.10 to 3.12)."

# What an interrupted set-up left is made anew, since pip would trust half-written packages; a
# working .venv that is only out of date, or was made by hand, is brought up to date in place.
$(STAMP): setup.py tools/install_detectron2.py
	@if [ -e $(UNFINISHED) ] || ! $(BIN) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
			2>/dev/null || { echo "Python 3.10 to 3.12 is needed, but $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1 | tail -n 1): name another one, as in" \
			"make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
		echo "Making $(VENV); this downloads some gigabytes the first time"; \
		rm -rf $(VENV) && mkdir $(VENV) && touch $(UNFINISHED) && $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN) -m pip install --upgrade setuptools wheel
	$(BIN) -m pip install --no-build-isolation --editable ".[dev]"
	$(BIN) tools/install_detectron2.py
	@rm -f $(UNFINISHED) && touch $@

demo: export DETECTRON2_DATASETS := $(DEMO)/datasets
demo: $(STAMP)
	$(BIN) tools/make_shapes.py --train 64 --val 8
	$(BIN) train_net.py --config-file configs/shapes_quickstart.yaml \
		OUTPUT_DIR $(DEMO)/model SOLVER.MAX_ITER 20 SEED 1
	$(BIN) train_net.py --config-file configs/shapes_quickstart.yaml --eval-only \
		OUTPUT_DIR $(DEMO)/model MODEL.WEIGHTS $(DEMO)/model/model_final.pth
	$(BIN) demo/demo.py --config-file configs/shapes_quickstart.yaml --input demo/images \
		--output $(DEMO)/pictures --opts MODEL.WEIGHTS $(DEMO)/model/model_final.pth
	@echo "The pictures are in $(DEMO)/pictures"

lint: $(STAMP)
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

test: lint
	$(BIN) -m pytest

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
