# make demo      environment, made-up data, both stages, evaluation: everything on a fresh machine
# make test      linter, type checker and the quick tests
# make test-slow the long checks
# make torture   kills, damaged files, full disks and more, for an hour or two
# make lock      requirements.lock anew, after a change of requirements.txt or pyproject.toml
# make audit     look the locked packages up among known vulnerabilities; needs the network
# VENV=/path     share one environment between checkouts
# CPU=1          the CPU build of torch, without CUDA; versions as pinned, no checksums

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO_RECORDS ?= 900
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow torture lint format lock audit clean-demo
.DELETE_ON_ERROR:

# Every file that is installed has the checksum that the lock file names.
$(VENV)/ready: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
ifdef CPU
	$(PIP) --index-url $(TORCH_INDEX) $$(grep '^torch' requirements.txt)
	$(PIP) --editable ".[dev]"
else
	$(PIP) --require-hashes -r requirements.lock
endif
	printf '#!/bin/sh\nexec "%s" "%s" "$$@"\n' "$(abspath $(RUN))" "$(CURDIR)/petface_command.py" > $(VENV)/bin/petface
	chmod +x $(VENV)/bin/petface
	touch $@

# Each step is done once; `make clean-demo` forgets them all.
demo: runs/demo/evaluation/petface_eval_summary.json runs/demo/identity/final.json
	@$(RUN) -m tools.show_evaluation --config configs/eval/demo.toml
	@printf '\nnext:\n'
	@echo '    $(RUN) inference_engine.py data/demo/images/cat/000000/00.png --config configs/eval/demo.toml'
	@echo '    $(RUN) inference_engine.py identify data/demo/images/hamster/000003/01.png --gallery data/demo/images/hamster --config configs/eval/demo.toml'
	@echo '    $(RUN) -m tools.serve --config configs/serve/demo.toml    # then open http://127.0.0.1:8000'
	@echo '    $(VENV)/bin/petface train my_pets                         # your own photos, <my_pets>/<class>/<photo>'

data/demo/demo.json: | $(VENV)/ready
	$(RUN) -m tools.make_demo_data --out data/demo --records $(DEMO_RECORDS) --size 64

runs/demo/stage1/final.json: | data/demo/demo.json
	$(RUN) train_resnet_minority_aug_dynamic.py --config configs/stage1/demo.toml

runs/demo/stage2/finished: | runs/demo/stage1/final.json
	$(RUN) stage2_resnet_multi.py --config configs/stage2/demo.toml
	touch $@

runs/demo/evaluation/petface_eval_summary.json: | runs/demo/stage2/finished
	$(RUN) inference_engine.py evaluate --config configs/eval/demo.toml

runs/demo/identity/final.json: | runs/demo/stage1/final.json
	$(RUN) train_identity.py --config configs/identity/demo.toml

test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/ready
	$(RUN) -m pytest -m slow

torture: $(VENV)/ready
	$(RUN) -m tests.torture

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# For every system and every Python from 3.11 on; versions that are there stay where they may. The
# tools of these two are used once, in a folder that is deleted.
lock:
	@scratch=$$(mktemp -d) && trap "rm -rf $$scratch" EXIT && $(PYTHON) -m venv $$scratch && \
	$$scratch/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 && \
	$$scratch/bin/uv --no-config pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --custom-compile-command "make lock" \
	  --output-file requirements.lock pyproject.toml --extra dev

# Packages that pip-audit could not look up are listed by it as skipped.
audit:
	@scratch=$$(mktemp -d) && trap "rm -rf $$scratch" EXIT && $(PYTHON) -m venv $$scratch && \
	$$scratch/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 && \
	$$scratch/bin/pip-audit --disable-pip --require-hashes --requirement requirements.lock --strict

clean-demo:
	rm -rf data/demo runs/demo
