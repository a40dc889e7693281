# Cirrus: every job a person starts. `make` alone explains them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

COMMA := ,
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
# onnxruntime-gpu, tensorrt and faiss-gpu where there is an NVIDIA GPU, their CPU packages elsewhere
EXTRA := $(if $(shell command -v nvidia-smi),gpu,cpu)
# milvus-lite brings faiss-cpu, which would take the place of faiss-gpu
DEV := $(if $(filter cpu,$(EXTRA)),dev$(COMMA)milvus-lite,dev)
BUNDLE ?= $(DEMO)/bundle
# Exporting is Python on one core, and tests of servers wait; so tests run in processes beside each other, up to 3 GB each.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
# Nothing waits in the fast ones.
CORES := $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
# Python compiles a module when it is first imported, and keeps that; to compile all of them would double the set-up.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help setup lock export export-full serve demo search bench bench-full bench-queries bench-service bench-service-peers bench-retrieval gpu-check test test-fast test-nightly torture test-install wheels lint demo-train clean

# -- Try it
help:  ## show this help
	@awk -F':.*## ' '/^# --/ {print "\n" substr($$0, 6)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## install everything into .venv (with the gpu extra where there is an NVIDIA GPU)

# Every package is compared with its hash but torch and torchvision, whose build (CPU or CUDA) is the index's choice, and
# the GPU packages.
$(READY): pyproject.toml export/cirrus_demo/pyproject.toml constraints.txt requirements-$(EXTRA).lock
	@echo "setting up $(VENV) with the $(EXTRA) extra"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps --requirement requirements-$(EXTRA).lock
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --no-deps torchvision
	$(PIP) --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRA),$(DEV)]" --editable export/cirrus_demo
	@touch $@

UV_LOCK = $(BIN)/uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-header --no-emit-package torch --no-emit-package torchvision
CPU_PACKAGES := onnxruntime openvino openvino-telemetry faiss-cpu milvus-lite

lock: $(READY)  ## write the hashes of constraints.txt's packages anew, after it was changed
	$(PIP) uv
	$(UV_LOCK) --output-file requirements-cpu.lock constraints.txt
	$(UV_LOCK) $(CPU_PACKAGES:%=--no-emit-package %) --output-file requirements-gpu.lock constraints.txt

export: $(DEMO)/index/index.json  ## export the demo model, verify it, embed and index a gallery, search it
	$(BIN)/cirrus search $(DEMO)/photos/000003.jpg "make it blue with stripes" --bundle $(BUNDLE) \
		--index $(DEMO)/index -k 5 --sheet $(DEMO)/search.png
	@echo "fidelity report: $(BUNDLE)/report.md"

$(DEMO)/weights/clip.safetensors: $(READY)
	$(BIN)/python -m cirrus_demo weights $(DEMO)/weights

$(DEMO)/probe/captions/cap.garments.val.json: $(READY)
	$(BIN)/python -m cirrus_demo probe $(DEMO)/probe

$(DEMO)/bundle/bundle.json: $(DEMO)/weights/clip.safetensors $(DEMO)/probe/captions/cap.garments.val.json
	$(BIN)/cirrus export --recipe transagg-union --backbone cirrus-demo --pretrained $(DEMO)/weights/clip.safetensors \
		--head $(DEMO)/weights/transagg_union.safetensors --probe $(DEMO)/probe --queries 240 --gallery 480 --out $(DEMO)/bundle

# The last of the photos: a run that was interrupted is done again.
$(DEMO)/photos/000599.jpg: $(READY)
	$(BIN)/python -m cirrus_demo photos $(DEMO)/photos --count 600 --size-px 512

$(DEMO)/index/index.json: $(DEMO)/bundle/bundle.json $(DEMO)/photos/000599.jpg
	$(BIN)/cirrus embed $(DEMO)/photos --bundle $(BUNDLE) --out $(DEMO)/gallery
	$(BIN)/python -m cirrus_demo products $(DEMO)/products.parquet --count 600
	$(BIN)/cirrus index $(DEMO)/gallery --metadata $(DEMO)/products.parquet --out $(DEMO)/index

INDEX ?= $(DEMO)/index

serve: $(DEMO)/index/index.json  ## serve BUNDLE and INDEX (the demo): Triton, the search API and its page, on loopback
	$(BIN)/cirrus serve $(BUNDLE) --index $(INDEX)

demo: $(DEMO)/index/index.json  ## a few searches with contact sheets under build/demo/sheets
	$(BIN)/python -m cirrus_demo catalogue $(DEMO)/catalogue
	for query in "0|is red and has long sleeves" "1|the same but dotted" "2|make it longer, in green"; do \
		$(BIN)/cirrus search $(DEMO)/photos/00000$${query%%|*}.jpg "$${query#*|}" --bundle $(BUNDLE) \
			--index $(DEMO)/index -k 11 --sheet $(DEMO)/sheets/photo-$${query%%|*}.png; done
	sketches=($(DEMO)/catalogue/sketches/*.jpg); \
		$(BIN)/cirrus search "$${sketches[0]}" --bundle $(BUNDLE) --index $(DEMO)/index -k 11 --sheet $(DEMO)/sheets/sketch.png

search: $(DEMO)/index/index.json  ## search the demo gallery: make search IMAGE=photo.jpg TEXT="make it blue"
	$(BIN)/cirrus search "$(IMAGE)" "$(TEXT)" --bundle $(BUNDLE) --index $(DEMO)/index --sheet $(DEMO)/search.png

# -- Measure it: reports are written under bench/reports
bench: $(READY)  ## gallery embedding, compared with the papers' baseline and other tools (6 GB, installed once)
	$(BIN)/cirrus bench gallery --out bench/reports

bench-full: $(READY)  ## gallery embedding over 2,000 photos, five rounds: hours on a CPU
	$(BIN)/cirrus bench gallery --images 2000 --repeats 5 --out bench/reports/full

B32 = build/bench/bundle-ViT-B-32-quickgelu-fp32

$(B32)/bundle.json: $(READY)
	$(BIN)/cirrus export --recipe transagg-union --backbone ViT-B-32-quickgelu --pretrained random --head random --out $(B32)

bench-queries: $(B32)/bundle.json  ## query latency through Triton, search compared with bare FAISS, every precision
	$(BIN)/cirrus bench queries $(B32) --out bench/reports
	$(BIN)/cirrus bench search --out bench/reports
	$(BIN)/cirrus bench precision --out bench/reports

bench-service: $(READY)  ## the search service, HTTP in and JSON out, compared with the bare engine and FAISS: 20 minutes
	$(BIN)/cirrus bench service --endurance-s 600 --out bench/reports

bench-service-peers: $(READY)  ## the search service compared with clip-retrieval's backend and infinity (4 GB, installed once)
	$(BIN)/cirrus bench service-peers --out bench/reports

DEMO_EXPORT = $(BIN)/cirrus export --backbone cirrus-demo --pretrained $(DEMO)/weights/clip.safetensors
DEMO_RECIPES := transagg-union sprc clip4cir magiclens searle clip-sum clip-image clip-text

bench-retrieval: $(DEMO)/weights/clip.safetensors  ## the demo's recipes side by side on its held-out catalogue
	$(BIN)/python -m cirrus_demo catalogue $(DEMO)/catalogue
	$(DEMO_EXPORT) --recipe transagg-union --head $(DEMO)/weights/transagg_union.safetensors --out $(DEMO)/transagg-union
	$(DEMO_EXPORT) --recipe sprc --option reranker=true --head $(DEMO)/weights/sprc.safetensors --out $(DEMO)/sprc
	$(DEMO_EXPORT) --recipe clip4cir --head $(DEMO)/weights/combiner.safetensors --out $(DEMO)/clip4cir
	$(DEMO_EXPORT) --recipe magiclens --head $(DEMO)/weights/magiclens.safetensors --out $(DEMO)/magiclens
	$(DEMO_EXPORT) --recipe searle --head $(DEMO)/weights/phi.safetensors --out $(DEMO)/searle
	$(DEMO_EXPORT) --recipe clip --out $(DEMO)/clip-sum
	$(DEMO_EXPORT) --recipe clip --option text_weight=0 --out $(DEMO)/clip-image
	$(DEMO_EXPORT) --recipe clip --option text_weight=1 --out $(DEMO)/clip-text
	$(BIN)/cirrus bench retrieval --root $(DEMO)/catalogue --split test --rerank 50 --out bench/reports \
		--work $(DEMO)/retrieval \
		$(foreach recipe,$(DEMO_RECIPES),--bundle $(DEMO)/$(recipe))

# -- Develop it
test: $(READY)  ## run every test that this machine can run; the others are skipped with the reason
	$(BIN)/python -m pytest -m "not install" -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-fast: $(READY)  ## run the tests that export nothing, start no server, install nothing and are quick
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder -m "not (export or triton or gpu or network or install or slow)"

test-nightly: $(READY)  ## the property tests of text and images with new and many more examples
	$(BIN)/python -m pytest --hypothesis-profile=nightly tests/client/test_tokenizer.py tests/client/test_preprocess.py

torture: $(READY)  ## kill jobs and fail the machine at every step, a server's as well, and write a report: 12 minutes
	$(BIN)/python -m pytest tests/torture --torture bench/reports

test-install: $(READY)  ## build wheel and sdist, install them without constraints elsewhere, and use them: 5 minutes
	$(BIN)/python -m pytest -m install

wheels: $(READY)  ## build the wheels of Cirrus and of the demo into dist
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python -m build --wheel --outdir dist export/cirrus_demo

gpu-check: $(READY)  ## verify everything that uses a GPU, and write a report (FULL=1: a ViT-L/14 as well)
	$(BIN)/cirrus gpu-check --out build/gpu-check $(if $(FULL),--full-size)

export-full: $(READY)  ## export and verify the published architectures at full size (random weights); 40 minutes, 20 GiB of memory
	$(BIN)/cirrus bench full-size --out bench/reports

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --package cirrus_client

demo-train: $(READY)  ## train the demo model again from its seed (about an hour on two cores)
	$(BIN)/python -m cirrus_demo.train
	$(BIN)/python -m cirrus_demo.train_phi
	$(BIN)/python -m cirrus_demo.train_qformer
	$(BIN)/python -m cirrus_demo.train_matching
	$(BIN)/python -m cirrus_demo.train_combiner
	$(BIN)/python -m cirrus_demo.train_magiclens

clean:  ## remove build output; the virtual environment stays
	rm -rf build dist *.egg-info
