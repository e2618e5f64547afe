# Everything a fresh checkout needs: `make demo` and `make test` set .venv up first where needed.

PYTHON ?= python3
DEMO ?= output/demo
QUICKSTART ?= output/quickstart
VENV := .venv
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished

# The stamp of a .venv whose Python no longer runs is worth nothing.
$(shell [ ! -e $(STAMP) ] || $(BIN) -c "" 2>/dev/null || rm -f $(STAMP))

# Names for the demo's images; some name combinations of words that no training image shows, and
# some name nothing that is there.
CLASSES ?= sand, brick, snow, water, wood, gravel, grass, sky, green star, white cross, \
	yellow striped triangle, white striped circle, red striped cross, blue striped square, \
	purple striped triangle, purple striped ring, white striped square, yellow striped circle, \
	yellow striped ring, blue striped cross, purple circle, red circle, blue star, orange ring

.PHONY: help demo quickstart weights test lint clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        segment the pictures of demo/images with the embedded model"
	@echo "make quickstart  train that model from nothing, in about an hour on two cores"
	@echo "make weights     make what quickstart trained the embedded model"
	@echo "make test        lint and the whole test suite"
	@echo "make lint        ruff: rules and formatting"
	@echo "make clean       remove .venv, $(DEMO), caches and build products"
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

demo: $(STAMP)
	$(BIN) demo/demo.py --input demo/images --output $(DEMO) --classes "$(CLASSES)"

# SED is trained by two processes of one thread each: the model is too small for two threads.
quickstart: export DETECTRON2_DATASETS := $(QUICKSTART)/datasets
quickstart: $(STAMP)
	$(BIN) tools/make_shapes.py
	$(BIN) tools/train_clip.py --output $(QUICKSTART)/clip
	OMP_NUM_THREADS=1 $(BIN) train_net.py --config-file configs/shapes_quickstart.yaml --resume \
		--num-gpus 2 OUTPUT_DIR $(QUICKSTART)/sed SEED 1 MODEL.DEVICE cpu \
		MODEL.CLIP.PRETRAINED $(QUICKSTART)/clip/clip.pt
	$(BIN) demo/demo.py --config-file configs/shapes_quickstart.yaml --input demo/images \
		--output $(QUICKSTART)/pictures --opts MODEL.WEIGHTS $(QUICKSTART)/sed/model_final.pth

# Makes what quickstart trained the embedded model.
weights: $(STAMP)
	$(BIN) tools/export_weights.py $(QUICKSTART)/sed/model_final.pth

lint: $(STAMP)
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

test: lint
	$(BIN) -m pytest

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
