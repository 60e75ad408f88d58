# One command each; plain `make` lists them. Everything a command needs is set up once, in .venv, from the
# package index: nothing but Python 3.11+ has to be there. Other versions than these have a directory of
# their own, .venv-VERSIONS.
#
#   PYTHON  the Python to start from         make test PYTHON=python3.12
#   TORCH   the build of PyTorch             make demo TORCH="torch==2.13.0 --index-url https://..."
#   TRITON  the version of Triton            make test TORCH=torch==2.11.0 TRITON=triton==3.6.0
#   DEMO    where the demo writes            SEED  its seed
#   STUDY   where the study writes           SEEDS its seeds
#   TEXT    of `make results`, JSON lines     SETS   its sets, as data.fetch lays them out
#   OUT     where the benchmarks write       PART  parts of `make gpu`, by their names
#   GPU_SECONDS  for all parts of `make gpu` together

PYTHON ?= python3
USUAL_TORCH := torch==2.13.0
TORCH ?= $(USUAL_TORCH)
TRITON ?=
DEMO ?= runs/demo
SEED ?= 0
STUDY ?= runs/study
SEEDS ?= 0 1 2
OUT ?= bench-results
PART ?=
GPU_SECONDS ?= 540

# The versions that a machine with a GPU is likely to hold; `test-all` runs the tests with them too.
OLDER = TORCH=torch==2.11.0 TRITON=triton==3.6.0
# .venv, or .venv-torch-2.11.0-triton-3.6.0
VERSIONS := $(filter-out $(USUAL_TORCH),$(firstword $(TORCH))) $(TRITON)
VENV := .venv$(subst $(eval ) ,,$(patsubst %,-%,$(subst ~=,-,$(subst >=,-,$(subst ==,-,$(VERSIONS))))))
PY := $(VENV)/bin/python
# What the demo trains on and how, the teacher and both students alike: short texts, large steps
DEMO_SHARDS = --length 64 --split-long --train-tokenizer 1024 --held-out 0.03 --workers 1
DEMO_TRAIN = $(PY) train.py --corpus $(DEMO)/shards --length 64 --batch 32 --betas 0.9,0.98 \
	--precision fp32 --seed $(SEED) --overwrite
DEMO_TEACHER = --model sample-demo-teacher --steps 300 --lr 6e-3
DEMO_STUDENT = --model sample-demo-student --steps 200 --lr 4e-3 --warmup 10 --weight-decay 0.01
DEMO_NER = $(PY) eval.py ner --data $(DEMO)/text/ner --epochs 8 --lr 2e-3 --batch 32 \
	--precision fp32 --seed $(SEED) --overwrite
DEMO_MODELS = teacher distilled undistilled
# A command beside those that print: its output goes to a file, and is shown if it fails.
beside = >$(DEMO)/$(@:demo-%=%).txt 2>&1 || { cat $(DEMO)/$(@:demo-%=%).txt; exit 1; }

define DEMO_PLAN
make demo: 2 minutes on two cores
  1. set-up, once: $(VENV) with PyTorch and the other packages
  2. a corpus of 5,000 biomedical-looking texts of our own making, and its word pieces
  3. a small teacher learns to fill in blanks (its loss is printed as it falls); beside it, silently,
     so does a student without a teacher
  4. the same student again, from the same weights, on the same texts, distilled from the teacher
  5. all three learn to find names of diseases, and are scored on sentences that none has seen
The result is a table, and a picture of the losses, in $(DEMO).

endef
export DEMO_PLAN
# the same for every method: a student, and -alone the same student without its teacher
METHOD_tiny = --method tiny
METHOD_tiny-alone = --method mlm
METHOD_distil = --method distil
METHOD_distil-alone = --method distil --alpha 1,0,0
METHOD_compact = --method compact
METHOD_compact-alone = --method compact --alpha 1,0,0
METHOD_mobile = --method mobile
METHOD_mobile-alone = --method mobile --alpha 1
METHOD_staged = --method mobile --stages
METHOD_staged-alone = --method mobile --alpha 1 --init-head copy
STUDENTS = $(foreach m,tiny distil compact mobile staged,$(m) $(m)-alone)
STUDY_MODELS = $(STUDENTS:%=$$seed/%) sample/teacher-$$seed sample/ib-teacher-$$seed
ENCODERS = distil-biobert tiny-biobert bio-mobilebert
# 600 sentences: more and larger steps than the paper's
NER = $(PY) eval.py ner --epochs 20 --lr 1e-3
# A file of tests runs in one process: what its fixtures train or compile is made once.
PYTEST := $(PY) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
# What is imported is compiled then, for the tests once in set-up, not by each of their processes; pip
# would compile all there is, which takes longer than the rest.
IMPORTED = hypothesis, sklearn.metrics, torch._dynamo, transformers.models.bert.modeling_bert
PIP := $(PY) -m pip install -qq --no-compile --disable-pip-version-check

# And kept, whatever the shell says: torch takes twice as long to import without, in each of hundreds
# of processes of the tests.
export PYTHONDONTWRITEBYTECODE :=

# Idle threads sleep: where another process wants the cores too, spinning ones cost tenfold.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo study results board test test-all lint bench gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: demo-plan $(VENV)/.plot  ## train a teacher, distil it, score both: 2 minutes on 2 cores
	@$(PY) -m data.sample --documents 5000 --out $(DEMO)/text --force >/dev/null
	@$(PY) -m data.shard $(DEMO)/text/corpus.jsonl $(DEMO_SHARDS) --out $(DEMO)/shards --overwrite
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 $(DEMO_MODELS:%=demo-ner-%)
	@$(PY) eval.py compare $(DEMO_MODELS:%=$(DEMO)/%) --ner $(DEMO_MODELS:%=$(DEMO)/ner/%) \
		--out $(DEMO)/table
	@$(PY) -m minibio plot $(DEMO_MODELS:%=$(DEMO)/%) --out $(DEMO)/loss.png

.PHONY: demo-plan $(DEMO_MODELS:%=demo-%) $(DEMO_MODELS:%=demo-ner-%)
demo-plan:
	@echo "$$DEMO_PLAN"

# Two at a time, of one thread each: models as small as these leave the second of two threads waiting.
demo-teacher:
	@$(DEMO_TRAIN) --method mlm $(DEMO_TEACHER) --out $(DEMO)/teacher
demo-distilled: demo-teacher
	@$(DEMO_TRAIN) --method tiny $(DEMO_STUDENT) --teacher $(DEMO)/teacher --out $(DEMO)/distilled
demo-undistilled:
	@$(DEMO_TRAIN) --method mlm $(DEMO_STUDENT) --out $(DEMO)/undistilled $(beside)
$(DEMO_MODELS:%=demo-ner-%): demo-ner-%: demo-%
	@$(DEMO_NER) --model $(DEMO)/$* --out $(DEMO)/ner/$* $(beside)

study: $(VENV)/.plot  ## every method with its teacher and without, 45 minutes a seed
	@for seed in $(SEEDS); do \
		$(foreach m,$(STUDENTS),[ -e $(STUDY)/$$seed/$(m)/model.safetensors ] \
			|| $(PY) train.py $(METHOD_$(m)) --seed $$seed --sample $(STUDY)/sample \
				--out $(STUDY)/$$seed/$(m) || exit;) \
		for model in $(STUDY_MODELS); do [ -e $(STUDY)/ner/$$model/ner.json ] \
			|| $(NER) --model $(STUDY)/$$model --data $(STUDY)/sample/text/ner --seed $$seed \
				--out $(STUDY)/ner/$$model || exit; \
		done; \
		$(PY) eval.py compare $(STUDY_MODELS:%=$(STUDY)/%) --ner $(STUDY_MODELS:%=$(STUDY)/ner/%) \
			--out $(STUDY)/$$seed || exit; \
	done
	@$(PY) eval.py table $(STUDY)/ner --teacher teacher --out $(STUDY) \
		--as $(foreach s,$(SEEDS),teacher-$(s)=teacher ib-teacher-$(s)=ib-teacher \
			$(foreach m,$(STUDENTS),$(s)/$(m)=$(m)))

# From texts and sets: TEXT="citations/*.jsonl.gz" SETS=downloads
RESULTS = $(PY) -m minibio results $(if $(TEXT),--text $(TEXT)) $(if $(SETS),--sets $(SETS))
GOAL ?= 65
results: $(VENV)/.test-all  ## the paper at half scale on real text, TEXT=... SETS=... ROWS=all: hours
	@$(RESULTS) $(addprefix --rows ,$(ROWS))
board: $(VENV)/.plot  ## from no weights at all to an F1 on NCBI-disease, TEXT=... SETS=... GOAL=65
	@$(RESULTS) --file minibio/report/board.toml --out runs/board --goal $(GOAL)

test: $(VENV)/.test  ## every test but the slow ones, on all cores; GPU tests are skipped without a GPU
	@$(PYTEST)

# Both sets of versions: CI has the first of them only.
test-all: $(VENV)/.test-all  ## the slow tests too, with a real checkpoint; then all with older versions
	@$(PYTEST) -m "slow or not slow"
	@$(MAKE) --no-print-directory test $(OLDER)

lint: $(VENV)/.test  ## ruff: rules and layout of the code
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check .

bench: $(VENV)/.test  ## speed on this machine's CPU, as tables in OUT: half an hour on 2 cores
	@$(PY) -m minibio bench encoder --device cpu --models $(ENCODERS) --batch 32 \
		--precision fp32 --out $(OUT)/encoder-cpu.csv
	@$(PY) -m minibio bench encoder --device cpu --models $(ENCODERS) --batch 1 --length 128 \
		--precision fp32 --repeats 41 --out $(OUT)/encoder-one-cpu.csv
	@$(PY) -m minibio bench step --device cpu --methods compact tiny --lengths pubmed full \
		--fidelity released paper --teacher-precision fp32 auto --out $(OUT)/step-cpu.csv
	@$(PY) -m kernels.bench attention-kl --device cpu --out $(OUT)/attention-kl-cpu.csv
	@$(PY) -m kernels.bench masked-mlm --device cpu --out $(OUT)/masked-mlm-cpu.csv

# A machine with a GPU often has its packages and no network, so its own Python is tried first.
gpu:  ## all that only a GPU can say, in order of worth, with tables in OUT: 9 minutes on one GPU
	@py=$(PYTHON); \
	if ! $$py -c 'import torch, numpy, safetensors, tokenizers' 2>/dev/null; then \
		[ -e /dev/nvidiactl ] || { echo "make gpu: no NVIDIA GPU on this machine"; exit 2; }; \
		$(MAKE) --no-print-directory $(VENV)/.test && py=$(PY) || exit 2; \
	fi; \
	$$py -m minibio.bench.gpu --out $(OUT) --seconds $(GPU_SECONDS) $(PART)

clean:  ## remove .venv and caches; runs/ and the benchmarks' tables stay
	@rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. Each stamp is touched last, so a set-up that failed half-way is done again. PyTorch goes
# first: the range in pyproject.toml is then satisfied by the build that was asked for.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "minibio needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) -V 2>&1`;" \
			"name another: make PYTHON=python3.12"; exit 1; }
	@echo "set-up, once: $(strip $(TORCH) $(TRITON)) and the packages of pyproject.toml, in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) $(TORCH)
	@$(if $(TRITON),$(PIP) $(TRITON))
	@touch $@

$(VENV)/.plot $(VENV)/.test $(VENV)/.test-all: $(VENV)/.torch pyproject.toml
	@$(PIP) --editable '.[$(patsubst $(VENV)/.%,%,$@)]'
	@$(if $(findstring test,$@),$(PY) -c 'import $(IMPORTED)')
	@touch $@
