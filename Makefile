# Tokenize once, train many times. `make help` lists what there is.

CORPUS ?= data/sample/wikipedia-zh-sample.json
SHARDS ?= data/shards/$(basename $(basename $(notdir $(CORPUS:/=))))
CONFIG ?= configs/sample.yaml
RUN    ?= $(basename $(notdir $(CONFIG)))
PROMPT ?=
RUNS   ?=
SWEEP  ?= configs/sweep.yaml
NPROC  ?= 1
ARGS   ?=

# An empty one would make a file or run of another name.
$(foreach name,CORPUS SHARDS CONFIG RUN SWEEP NPROC,$(if $(strip $($(name))),,$(error $(name) is empty; give it a value, or leave it out)))
ifneq ($(shell printf %s '$(subst ','\'',$(NPROC))' | grep -cxE '[1-9][0-9]*|auto|gpu|cpu'),1)
$(error NPROC: expected a number of processes from 1 on, found $(NPROC))
endif

SAMPLE_CORPUS    := data/sample/wikipedia-zh-sample.json
SAMPLE_TOKENIZER := data/tokenizers/wikipedia-zh-sample
SAMPLE_VOCAB_SIZE   := 4096
# Few and short articles: none that fits a block is cut, so that most blocks begin with the beginning of an article.
SAMPLE_BUILD_ARGS   := --block-tokens 128 --packing best-fit --val-fraction 0.06

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV   := .venv
RUN_PYTHON := $(VENV)/bin/python
# pip compiles one file after another, which is half of its time. Some packages have files that are no Python 3.
COMPILE := $(RUN_PYTHON) -W ignore -m compileall -qq -j 0 $(VENV)/lib || true

ifeq ($(CORPUS),$(SAMPLE_CORPUS))
BUILD_ARGS := --tokenizer $(SAMPLE_TOKENIZER) $(SAMPLE_BUILD_ARGS)
BUILD_NEEDS := $(SAMPLE_TOKENIZER)/tokenizer.json
endif

# Training needs shards built first where this Makefile knows from what: where CORPUS is given, and for the sample if
# SHARDS names no other set.
ifneq ($(filter command line environment,$(origin CORPUS)),)
TRAIN_NEEDS := shards
TRAIN_SHARDS := --shards "$(SHARDS)"
else ifeq ($(CONFIG) $(origin SHARDS),configs/sample.yaml file)
TRAIN_NEEDS := shards
SAMPLE_STEPS := .sample-steps
SAMPLE_END := $(if $(ARGS),,echo "The sample shows the whole way. Its model recites the articles it was trained on, and that is all it can: on other text it is worse than guessing. Next: your own corpus, see README.md.")
endif
ifneq ($(filter command line environment,$(origin SHARDS)),)
TRAIN_SHARDS := --shards "$(SHARDS)"
endif

.DEFAULT_GOAL := help
.PHONY: help setup data shards train generate compare sweep report test test-all coverage check audit licences reference bench bench-gpu peers clean

help:  ## list the targets and variables
	@echo "Targets"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | awk -F'|' '{printf "  %-10s %s\n", $$1, $$2}'
	@echo
	@echo "Variables"
	@echo "  CORPUS     source file                    ($(CORPUS))"
	@echo "  SHARDS     shard set to build or read     ($(SHARDS))"
	@echo "  CONFIG     training settings              ($(CONFIG))"
	@echo "  RUN        name of the run, in runs/      ($(RUN))"
	@echo "  NPROC      processes (GPUs) to train on   ($(NPROC))"
	@echo "  PROMPT     text to continue               (the prompts of the config)"
	@echo "  RUNS       names of the runs to compare   (all in runs/)"
	@echo "  SWEEP      runs to train one by one       ($(SWEEP))"
	@echo "  ARGS       further options of the command, e.g. ARGS=\"--learning_rate 1e-3\""

setup: $(VENV)/.ready  ## make the environment .venv from requirements.lock

$(VENV)/.ready: requirements.lock
	@"$(PYTHON)" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	"$(PYTHON)" -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --no-compile --requirement requirements.lock
	@$(COMPILE)
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.ready requirements-dev.lock
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --no-compile --no-deps --requirement requirements-dev.lock
	@$(COMPILE)
	@touch $@

data: $(VENV)/.ready  ## fetch the Chinese Wikipedia corpus, 2 GB, into data/
	@$(RUN_PYTHON) -m pipeline fetch wikipedia-zh $(ARGS)

shards: $(VENV)/.ready $(BUILD_NEEDS)  ## build the shard set of CORPUS, once
	@$(RUN_PYTHON) -m pipeline build "$(CORPUS)" --out "$(SHARDS)" $(BUILD_ARGS) $(if $(filter shards,$(MAKECMDGOALS)),$(ARGS))

$(SAMPLE_TOKENIZER)/tokenizer.json: $(SAMPLE_CORPUS) | $(VENV)/.ready
	@$(RUN_PYTHON) -m pipeline tokenizer "$<" --vocab-size $(SAMPLE_VOCAB_SIZE) --out "$(@D)" --force

# With several processes torchrun starts them. Mistakes are found before that, or torchrun would report them once more.
TRAIN_OPTIONS = --config "$(CONFIG)" --output_dir "runs/$(RUN)" $(TRAIN_SHARDS) $(ARGS)
ifneq ($(NPROC),1)
TRAIN_CHECK = @$(RUN_PYTHON) -m train $(TRAIN_OPTIONS) --check
TRAIN_PYTHON := $(RUN_PYTHON) -m torch.distributed.run --standalone --nproc-per-node "$(NPROC)"
else
TRAIN_PYTHON := $(RUN_PYTHON)
endif

# What a newcomer's first command will do, and how long that takes on two cores.
.sample-steps:
	@echo "1. packages    $$(test -f $(VENV)/.ready && echo 'in $(VENV) already' || echo 'into $(VENV), once: 2 GB, 2 to 4 minutes')"
	@echo "2. shards      tokenizer and shard set of 110 short articles: a few seconds, once"
	@echo "3. training    a model of one million parameters, which learns them by heart: 1 to 2 minutes"
	@echo "4. text        the model continues 人工智能, 牛顿, 北京市, 亚洲历史: 2 seconds"

train: $(SAMPLE_STEPS) $(VENV)/.ready $(TRAIN_NEEDS)  ## train the model of CONFIG, then generate from its prompts
	$(TRAIN_CHECK)
	@$(TRAIN_PYTHON) -m train $(TRAIN_OPTIONS)
	@$(SAMPLE_END)

# PROMPT comes from the environment: make leaves it there, and in the shell's words a quotation mark would end it.
generate: $(VENV)/.ready  ## continue PROMPT with the model of RUN
	@$(RUN_PYTHON) -m train.generate "runs/$(RUN)" $(if $(PROMPT),--prompt "$$PROMPT") $(ARGS)

compare: $(VENV)/.ready  ## show what differs between RUNS and what came of each, with a page of the curves
	@$(RUN_PYTHON) -m train.compare $(if $(RUNS),$(foreach run,$(RUNS),"$(if $(findstring /,$(run)),,runs/)$(run)"),runs) --out runs/compare.html $(ARGS)

# The sample's config needs its shards, as `train` does.
sweep: $(VENV)/.ready $(TRAIN_NEEDS)  ## train the runs of SWEEP one after another, then compare them
	@$(RUN_PYTHON) -m train.sweep "$(SWEEP)" $(ARGS)

report: $(VENV)/.ready  ## make a page about the shard set SHARDS: lengths, tokens, scripts, blocks
	@$(RUN_PYTHON) -m shards report "$(SHARDS)" $(ARGS)

# In random order (pytest-randomly), in as many processes as there are cores, up to 8: the longest file sets the end.
# `worksteal` gives each process whole files first.
PYTEST := pytest -n auto --maxprocesses 8 --dist worksteal
RUN_OFFLINE := HF_HUB_OFFLINE=1 $(RUN_PYTHON) -m

test: $(VENV)/.dev-ready  ## run the tests, offline, in a few minutes
	$(RUN_OFFLINE) $(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev-ready  ## run all tests, the long ones too
	$(RUN_OFFLINE) $(PYTEST) $(ARGS)

coverage: $(VENV)/.dev-ready  ## the same tests, and what share of the code they run; fails below 90 %
	$(RUN_OFFLINE) coverage run -m $(PYTEST) -m "not slow" $(ARGS)
	$(RUN_PYTHON) -m coverage combine --quiet
	$(RUN_PYTHON) -m coverage report

check: $(VENV)/.dev-ready  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

AUDIT_VENV := .audit-venv

$(AUDIT_VENV)/.ready: tools/audit-requirements.txt
	"$(PYTHON)" -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --disable-pip-version-check --quiet --requirement tools/audit-requirements.txt
	@touch $@

audit: $(VENV)/.dev-ready $(AUDIT_VENV)/.ready  ## ask for known security holes in the packages of the lock files (network)
	@$(RUN_PYTHON) -m tools.audit $(AUDIT_VENV)/bin/pip-audit $(ARGS)

licences: $(VENV)/.dev-ready  ## fill docs/licences.md with the licences of the packages of the lock files
	@$(RUN_PYTHON) -m tools.licences

reference: $(VENV)/.dev-ready  ## fill docs/reference.md with the options of all commands
	@$(RUN_PYTHON) -m tools.reference

bench: $(VENV)/.dev-ready  ## measure a build: time and memory, with ARGS="--only peers" beside the peers (see bench/RESULTS.md)
	$(RUN_PYTHON) -m bench.pipeline $(ARGS)

# The tutorial's recipe on so many tokens, ours on half of them, three rates each, and once without the faster embedding.
# To see on a CPU that it runs: make bench-gpu GPU_SHAPE=tiny GPU_RECIPE=shape=tiny GPU_TOKENS=40000 GPU_HALF=20000
# GPU_STEPS="--layers 0 --batch 2 --rounds 1 --steps 4"
GPU_SHAPE  ?= 120m
GPU_RECIPE ?= shape=120m,block_tokens=512,step_tokens=32768
GPU_TOKENS ?= 1e9
GPU_HALF   ?= 5e8
GPU_STEPS  ?= --layers 12 --batch 32 --rounds 2 --steps 22 --bf16 --gpu
GPU_TUTORIAL = $(GPU_RECIPE),packing=whole,optimizer=adamw,schedule=cosine,warmup=0.05,tokens=$(GPU_TOKENS)
GPU_OURS = $(GPU_RECIPE),tokens=$(GPU_HALF)

bench-gpu: $(VENV)/.dev-ready  ## measure the trainer on a GPU: steps, memory, tokens to the same loss, on CORPUS
	$(RUN_PYTHON) bench/recipe.py prepare bench/gpu-work "$(CORPUS)" --shape $(GPU_SHAPE)
	set -e; for loss in chunked plain; do for compile in false true; do $(RUN_PYTHON) -m bench.trainer bench/gpu-work/shards \
	  $(GPU_STEPS) --loss $$loss --training "{\"torch_compile\": $$compile}"; done; done
	$(RUN_PYTHON) bench/recipe.py run bench/gpu-work $(foreach rate,5e-4 1e-3 2e-3,$(GPU_TUTORIAL),learning_rate=$(rate)) \
	  $(foreach rate,2e-3 4e-3 8e-3,$(GPU_OURS),learning_rate=$(rate),embedding_rate=3) $(GPU_OURS),learning_rate=4e-3
	$(RUN_PYTHON) bench/recipe.py table bench/gpu-work

# Their packages ask for older ones of ours, and of each other. Streaming asks for much that its reader doesn't need.
PEERS_VENV := bench/.peers-venv

$(PEERS_VENV)/.ready: bench/peers-requirements.txt
	"$(PYTHON)" -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --disable-pip-version-check --quiet --requirement bench/peers-requirements.txt
	$(PEERS_VENV)/bin/pip install --disable-pip-version-check --quiet --no-deps mosaicml-streaming==0.13.0
	@touch $@

peers: $(VENV)/.dev-ready $(PEERS_VENV)/.ready  ## install the peers for the benchmarks, and read a set with each one's own reader
	$(RUN_PYTHON) -m bench.peers $(ARGS)

clean:  ## remove built shards, tokenizers and caches; keeps runs/, data/*.json and .venv
	rm -rf data/shards data/tokenizers .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
