# make bench   the main job: one Hymba-1.5B layer, hymba_ops against plain PyTorch
# make test    the kernel-against-reference suite; PYTEST_OPTIONS="-n 4" runs it in four processes
# Each sets up everything it needs in .venv first. PYTHON=... chooses the interpreter.
VENV := .venv
SOURCES := $(shell find csrc hymba_ops -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py pyproject.toml

.PHONY: bench test
bench: $(VENV)/installed
	$(VENV)/bin/python bench/layer_throughput.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(PYTEST_OPTIONS)

$(VENV)/installed: $(SOURCES) tools/setup_env.sh
	tools/setup_env.sh $(VENV)
	touch $@
