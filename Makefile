# Two commands: `make tour` and `make test`. Each sets up what it needs first; a second run starts at once.
# Needs Python >= 3.11, git and make. Everything that is installed stays in .venv.

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.stamp
PY     := $(VENV)/bin/python
CLI    := $(VENV)/bin/spatext-lab
COCO   ?=

# Never a hub. How many threads a model uses, the library chooses (`diffusion.few_threads`).
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export HF_HUB_OFFLINE  := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help setup tour models test browser lab lint format wheel notebooks house api tables benchmarks clean moved

help:  ## this list
	@echo "make TARGET [PYTHON=python3.12] [COCO=/path/to/coco]"
	@sed -n 's/^\([a-z]*\):.*  ## /  \1\t/p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## .venv with the exact set of constraints.txt (others call it)

tour: $(STAMP)  ## every step with images, under 5 minutes; COCO=DIR adds real photos
	@$(CLI) tour --out outputs/tour $(if $(COCO),--coco "$(COCO)")

models: $(STAMP)  ## train every model from its first step into outputs/models; goes on where it was stopped
	@$(CLI) train all --out outputs/models

lab: $(STAMP)  ## JupyterLab at the first notebook
	@$(PY) -m jupyter lab --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate $(firstword $(NOTEBOOKS))

lint: $(STAMP)  ## ruff over code and notebooks
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check

format: $(STAMP)  ## ruff repairs what it can
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

# One process a core with one thread each; a file's tests stay together, as notebooks need it. The
# long ones come first, so that no core waits for them at the end.
test: lint browser  ## lint, tests, and every notebook executed
	@OMP_NUM_THREADS=1 $(PY) -m pytest $(NOTEBOOKS) tests -n $(CORES) --dist loadfile --no-loadscope-reorder \
		-p tests.copies --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval.cfg

# For the tests that drive the widgets; where there is no way without a question, they are skipped.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		as=$$([ "$$(id -u)" = 0 ] || echo "sudo -n"); \
		command -v apt-get >/dev/null && $$as true 2>/dev/null \
		&& echo "Installing Chromium for the browser tests ..." \
		&& $$as apt-get update -qq && $$as apt-get install -qq -y --no-install-recommends chromium >/dev/null; } \
		|| echo "No Chromium: the browser tests will be skipped. On Debian and Ubuntu: sudo apt install chromium"

notebooks: $(STAMP)  ## execute the notebooks in place; student and solution copies in outputs/notebooks
	@$(PY) -m jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False $(NOTEBOOKS)
	@$(PY) -m spatext_lab.course.exercises $(NOTEBOOKS)

house: $(STAMP)  ## the package's folders, and which imports which
	@$(PY) -m tests.house

api: $(STAMP)  ## docs/api.md and docs/tree.md anew, from the docstrings
	@$(PY) docs/make_api.py

tables: $(STAMP)  ## the tables of README, docs and cards anew, from docs/measured
	@$(PY) docs/make_tables.py

benchmarks: $(STAMP)  ## speed beside other libraries and methods, one table
	@$(PY) -m benchmarks

wheel: $(STAMP)  ## dist/*.whl, the pocket models inside
	@$(PY) -m hatchling build --target wheel

clean:  ## caches and built wheels; .venv and outputs stay
	@rm -rf dist build .pytest_cache .ruff_cache .hypothesis
	@find spatext_lab tests notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A moved checkout is set up again, for an environment remembers where it was made.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): moved
endif

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("This needs Python 3.11 or newer, and \
	$(PYTHON) is %d.%d. Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" % sys.version_info[:2])'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "No virtual environment could be made. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) (the first time: several GB, 3 to 15 minutes) ..."
	@start=$$(date +%s); $(PY) -m pip install -qq -c constraints.txt -e '.[dev]' \
		&& echo "Set up in $$(( $$(date +%s) - start )) s."
	@echo '$(CURDIR)' > $@
