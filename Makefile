# make demo      environment, made-up data, both stages, evaluation: everything on a fresh machine
# make test      linter, type checker and the quick tests
# make test-slow the long checks
# VENV=/path     share one environment between checkouts

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO_RECORDS ?= 900

.PHONY: demo test test-slow lint format clean-demo
.DELETE_ON_ERROR:

$(VENV)/ready: $(wildcard requirements*.txt)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Each step is done once; `make clean-demo` forgets them all.
demo: runs/demo/evaluation/petface_eval_summary.json
	@$(RUN) -m tools.show_evaluation --config configs/eval/demo.toml

data/demo/demo.json: | $(VENV)/ready
	$(RUN) -m tools.make_demo_data --out data/demo --records $(DEMO_RECORDS) --size 64

runs/demo/stage1/final.json: | data/demo/demo.json
	$(RUN) train_resnet_minority_aug_dynamic.py --config configs/stage1/demo.toml

runs/demo/stage2/finished: | runs/demo/stage1/final.json
	$(RUN) stage2_resnet_multi.py --config configs/stage2/demo.toml
	touch $@

runs/demo/evaluation/petface_eval_summary.json: | runs/demo/stage2/finished
	$(RUN) inference_engine.py evaluate --config configs/eval/demo.toml

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/ready
	$(RUN) -m pytest -m slow

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean-demo:
	rm -rf data/demo runs/demo
