# `make demo` and `make test` work in a fresh checkout: they set up .venv first.

PYTHON ?= python3
DEMO ?= output/demo
QUICKSTART ?= output/quickstart
VENV := .venv
BIN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished
# The oldest and the newest supported Python 3, as setup.py states them, and both in words.
MINORS := $(shell sed -n 's/^OLDEST, NEWEST = \([0-9]*\), \([0-9]*\)$$/\1 \2/p' setup.py)
OLDEST := $(word 1,$(MINORS))
NEWEST := $(word 2,$(MINORS))
SUPPORTED := 3.$(OLDEST) to 3.$(NEWEST)

# If the Python of .venv no longer runs, set .venv up again.
$(shell [ ! -e $(STAMP) ] || $(BIN) -c "" 2>/dev/null || rm -f $(STAMP))

# Names for the demo's images. Some combine words as no training image does, and some name nothing
# in the images.
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
	@echo "make lint        ruff (rules, formatting) and mypy (types)"
	@echo "make clean       remove .venv, $(DEMO), caches and build products"
	@echo "All but clean set up .venv first; choose its Python with PYTHON=python3.12 ($(SUPPORTED))."

# Replace what an interrupted set-up left, because pip would trust half-written packages. Update a
# working .venv in place, also one that was made by hand.
$(STAMP): setup.py tools/install_detectron2.py
	@if [ -e $(UNFINISHED) ] || ! $(BIN) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -c 'import sys; v = sys.version_info; \
			sys.exit(not (3, $(OLDEST)) <= v[:2] <= (3, $(NEWEST)))' \
			2>/dev/null || { echo "Python $(SUPPORTED) is needed, but $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1 | tail -n 1): name another one, as in" \
			"make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
		echo "Making $(VENV); this downloads some gigabytes the first time"; \
		rm -rf $(VENV) && mkdir $(VENV) && touch $(UNFINISHED) && $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN) -m pip install --upgrade setuptools wheel
	$(BIN) -m pip install --no-build-isolation --editable ".[dev]"
	$(BIN) tools/install_detectron2.py
	@rm -f $(UNFINISHED) && touch $@

demo: $(STAMP)
	$(BIN) demo/demo.py --input demo/images --output $(DEMO) --classes "$(CLASSES)"

# Train SED in two processes of one thread each: the model is too small for two threads.
quickstart: export DETECTRON2_DATASETS := $(QUICKSTART)/datasets
quickstart: $(STAMP)
	$(BIN) tools/make_shapes.py
	$(BIN) tools/train_clip.py --output $(QUICKSTART)/clip
	OMP_NUM_THREADS=1 $(BIN) train_net.py --config-file configs/shapes_quickstart.yaml --resume \
		--num-gpus 2 OUTPUT_DIR $(QUICKSTART)/sed SEED 1 MODEL.DEVICE cpu \
		MODEL.CLIP.PRETRAINED $(QUICKSTART)/clip/clip.pt
	$(BIN) demo/demo.py --config-file configs/shapes_quickstart.yaml --input demo/images \
		--output $(QUICKSTART)/pictures --opts MODEL.WEIGHTS $(QUICKSTART)/sed/model_final.pth

# Make what quickstart trained the embedded model.
weights: $(STAMP)
	$(BIN) tools/export_weights.py $(QUICKSTART)/sed/model_final.pth

lint: $(STAMP)
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

test: lint
	$(BIN) -m pytest

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
