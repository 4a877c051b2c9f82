# `make bench`, `make test`, `make lint`, `make docs`: the first one typed creates .venv from constraints.txt, later ones bring it up to
# date when constraints.txt or a pyproject.toml has changed (after `git pull`, say). ARGS is handed on:
#     make bench ARGS="--workers 2"        make test ARGS="tests/test_spec.py -x"
# PYTHON names the interpreter to build .venv with; without it the first python3 of version 3.11 or newer is taken.

PROJECTS := . registry $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
PLUGINS := $(filter plugins/%,$(PROJECTS))
# Plugins as others would publish them: checked, and not installed.
EXAMPLES := $(patsubst %/pyproject.toml,%,$(wildcard examples/*/pyproject.toml))
VENV := .venv
BIN := $(VENV)/bin
# Written last, so an interrupted installation leaves none. Holds the folder: scripts in a .venv that was copied or moved
# along with the tree would run the code of the old place.
STAMP := $(VENV)/installed-for-zoo

ifneq ($(shell test -x $(BIN)/python && cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: bench test lint docs install
.DELETE_ON_ERROR:
.DEFAULT_GOAL := test

bench: $(STAMP)
	$(BIN)/zoo bench $(ARGS)

# Each worker begins with half of the tests in their order, so that what a module builds is mostly built once, and takes
# over from the other one at the end.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# mypy runs once for the core and once for each plugin and example, because every one of them has a folder `tests` of its own.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy zoo_core registry tests $(wildcard benchmarks docs conftest.py)
	@for plugin in $(PLUGINS) $(EXAMPLES); do echo "$(BIN)/mypy $$plugin"; $(BIN)/mypy "$$plugin" || exit 1; done

# The site, in the folder `site`: pages that the product makes of itself, then Zensical, then a look at what it wrote.
docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean
	$(BIN)/python docs/check.py site

install: $(STAMP)

# Exits 0 if the interpreter "$$1" will do. The module `ensurepip` is what Debian leaves out of its python3.
CHECK := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)

define INSTALL
set -eu
if [ "$$(cat $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then
    echo "Bringing $(VENV) up to date with constraints.txt."
else
    python=
    for candidate in $(CANDIDATES); do
        if "$$candidate" -c '$(CHECK)' >/dev/null 2>&1; then python=$$candidate; break; fi
    done
    if [ -z "$$python" ]; then
        echo "make: zoo needs Python 3.11 or newer with the modules venv and ensurepip. Tried:" >&2
        for candidate in $(CANDIDATES); do
            echo "    $$candidate: $$("$$candidate" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null || echo none)" >&2
        done
        echo "Install one (Debian and Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2
        exit 1
    fi
    echo "Creating $(VENV) with $$("$$python" --version) and installing constraints.txt: several GB, some minutes."
    "$$python" -m venv --clear $(VENV)
fi
rm -f $(STAMP)
$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' $(patsubst %,-e %,$(filter-out .,$(PROJECTS)))
echo "$(CURDIR)" > $(STAMP)
endef
export INSTALL

$(STAMP): constraints.txt $(patsubst %,%/pyproject.toml,$(PROJECTS))
	@sh -c "$$INSTALL"
