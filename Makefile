# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test peer gpu lint docs sanitize clean

NATIVE := setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)

# Remade whenever dependencies or native code change. Torch goes first: the native code is built against it.
$(VENV)/installed: pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "bissl-fast needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.11,<3'
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,docs]'
	touch $@

# A network so small, by Adam, that eight epochs of the pretext task teach it what an untrained one cannot tell.
DEMO := --backbone test_resnet --images.size 48 --protocols knn --controls --pretrain.epochs 8 \
	--pretrain.optimizer.kind adam --pretrain.optimizer.no-scale-learning-rate \
	--pretrain.optimizer.weight-decay 1e-4 --pretrain.learning-rate 1e-3 --bissl.learning-rate 1e-3

demo: $(VENV)/installed
	$(BIN)/bissl-fast train --dataset textures --name demo $(DEMO)

# A worker for each core, with a thread of its own: most tests trace and compile in Python.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m 'not gpu and not slow and not peer'

# Comparisons with other libraries, which are installed for it.
peer: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,peer]'
	$(BIN)/python -m pytest -m peer

# Tests and benchmarks that need a GPU, slice by slice; results go to docs/results.
gpu: $(VENV)/installed
	for slice in 1 2 3 4 5 6 7; do PYTHON=$(abspath $(BIN)/python) scripts/gpu/slice.sh $$slice docs/results; done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ as a site, which opens from site/index.html; a link that leads nowhere is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The C++ unit test of the CPU kernels under AddressSanitizer and UBSan.
sanitize: $(VENV)/installed
	cmake -S . -B build/sanitize -DSANITIZE=ON -DPython3_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/sanitize --parallel 2
	ctest --test-dir build/sanitize --output-on-failure

clean:
	rm -rf $(VENV) build dist site *.egg-info
