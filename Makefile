# make run     install and answer a prompt with the default model
# make test    install and run every check and test (no torch)
# make soak    simulate random requests for SECONDS=600, or as long as you say
# make parity  add torch and transformers and compare with them
# make wheel   build dist/kvist-*.whl
#
# All of them work from a fresh clone, on a machine with Python 3.11 or later and nothing else.

VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PROMPT ?= Why is the sky blue? Answer in two sentences.
SECONDS ?= 600
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# what pip does, a line a package; its errors come through as they are
BRIEF = awk '/^Collecting /{print "  " $$2; fflush()} /^Installing collected/{print "  installing"; fflush()}'

.PHONY: run test check soak parity wheel clean

run: $(VENV)/run.done
	@$(BIN)/kvist pull smollm2
	@echo "> $(PROMPT)"
	@$(BIN)/kvist run smollm2 "$(PROMPT)" --max-tokens 128 --stats

test: $(VENV)/test.done check
	@$(BIN)/kvist pull smollm2
	@$(BIN)/python -m pytest -m "not parity" -n 2 --dist loadfile

check: $(VENV)/test.done
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/check_size.py src

soak: $(VENV)/test.done
	@$(BIN)/python tests/soak.py --seconds $(SECONDS)

parity: $(VENV)/parity.done
	@$(BIN)/kvist pull smollm2
	@$(BIN)/python -m pytest -m parity

wheel: $(VENV)/test.done
	@$(BIN)/python -m build --wheel
	@ls dist/*.whl

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "kvist needs Python 3.11 or later with venv (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/run.done: pyproject.toml | $(BIN)/python
	@echo "installing kvist into $(VENV)"
	@rm -f $@; { $(PIP) install -e . && touch $@; } | $(BRIEF); test -f $@

$(VENV)/test.done: pyproject.toml | $(BIN)/python
	@echo "installing kvist and its test tools into $(VENV)"
	@rm -f $@; { $(PIP) install --upgrade "pip>=25.1" && $(PIP) install -e . --group test && touch $@; } | $(BRIEF); test -f $@

$(VENV)/parity.done: $(VENV)/test.done
	@echo "installing torch and transformers into $(VENV)"
	@rm -f $@; { $(PIP) install torch==2.13.0 && $(PIP) install transformers accelerate && touch $@; } | $(BRIEF); test -f $@

clean:
	rm -rf $(VENV) dist build
