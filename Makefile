# make demo   the main job, end to end, on this machine's CPU
# make test   the tests        make check   format, lint, types, floors
# make soak   the long form: fifty kills, the whole resume matrix, every family in every layout, with what was counted
# Each does its own set-up in .venv; only Python 3.11 or newer and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
RUNS := runs

export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE := 1
export DS_ACCELERATOR := cpu

.PHONY: demo test check soak clean
.DELETE_ON_ERROR:

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.x") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test,check]'
	@touch $@

demo: $(INSTALLED)
	rm -rf $(RUNS)/gpt_demo $(RUNS)/bert_demo
	scale plan --params 1.3B --out $(RUNS)/gpt3-1.3b
	scale plan --recipe recipes/gpt_demo.yaml --gpu cpu --gpus 2 --out $(RUNS)/gpt_demo
	deepspeed --num_gpus 2 scale/train.py --ds_config $(RUNS)/gpt_demo/ds_config.json --recipe recipes/gpt_demo.yaml \
	    --run_dir $(RUNS)/gpt_demo --max_steps 120
	deepspeed --num_gpus 2 scale/train.py --ds_config $(RUNS)/gpt_demo/ds_config.json --recipe recipes/gpt_demo.yaml \
	    --run_dir $(RUNS)/gpt_demo
	scale export $(RUNS)/gpt_demo --out $(RUNS)/gpt_demo/export
	scale generate $(RUNS)/gpt_demo/export --prompt "Return the"
	scale plan --recipe recipes/bert_demo.yaml --gpu cpu --gpus 2 --out $(RUNS)/bert_demo
	deepspeed --num_gpus 2 scale/train.py --ds_config $(RUNS)/bert_demo/ds_config.json --recipe recipes/bert_demo.yaml \
	    --run_dir $(RUNS)/bert_demo
	scale export $(RUNS)/bert_demo --out $(RUNS)/bert_demo/export
	scale report $(RUNS)/bert_demo
	scale report $(RUNS)/gpt_demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

soak: $(INSTALLED)
	SCALE_SOAK=1 $(BIN)/python -m pytest -s tests/faults tests/parallel tests/optim/test_table.py tests/training/test_resume.py \
	    tests/training/test_noise_scale.py tests/training/test_same_loss.py tests/training/test_universal.py \
	    tests/training/test_weights.py tests/cost/test_memory_measured.py

check: $(INSTALLED)
	ruff format --check .
	ruff check .
	mypy
	lint-imports

clean:
	rm -rf $(VENV) $(RUNS) plans build dist
