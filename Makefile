# `make` prints this file's targets. A fresh machine needs Python 3.11 or later, make and a package index; nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 1
OUTPUT ?= results
# What `make coverage` runs, and how many mutants `make mutants` makes.
TESTS ?= tests
SAMPLE ?= 30
# `make audit AUDIT=--required` fails where nobody could be asked about the packages.
AUDIT ?=
# What `make gpu-check` is told. It installs nothing: it takes the Python that is named, else our environment, else any.
CHECK ?= --json gpu-check.json
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports, and keeps it; compiling all that is installed would take a minute. Where the
# environment forbids to keep it, each of the hundreds of processes of the tests would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
NEEDS := pyproject.toml constraints.txt
# Three lanes of tests, also on two cores, since tests often wait. A file stays in one lane, which makes its fixtures
# once. The files begin in the order that tests/conftest.py gives them. (`loadgroup` of xdist 3.8 does not group under
# pytest 9.2, and does not say so.)
LANES := -n 3 --dist loadfile --no-loadscope-reorder
# Where the object store has a part: storage, jobs, results, deletes, repairs, lists in the store, shards.
ON_MINIO := control data_sets fault_proxy main_job minio object_data pack results sources_s3 storage

GPU_PYTHON = $(if $(filter command environment,$(origin PYTHON)),$(PYTHON),$(or $(wildcard $(BIN)/python),$(PYTHON)))

# What ruff's S rules do not know: torch.load of anything, downloads from a hub, letters that reorder code. See pyproject.toml.
WEAK_CODE = $(BIN)/bandit --quiet --recursive --configfile pyproject.toml producer worker deploy gradcam_queue

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installations into one environment at the same time would spoil it.
.NOTPARALLEL:

.PHONY: help
help: ## print this
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ set-up and use

.PHONY: demo
demo: $(VENV)/demo.stamp ## explain ten photos with everything on this machine; pictures in OUTPUT=results
	@$(BIN)/gradcam demo --output-dir "$(OUTPUT)"

.PHONY: up
up: $(VENV)/demo.stamp ## start the local stack in the background, with WORKERS=1 (0 for the servers alone)
	@$(BIN)/gradcam up --workers "$(WORKERS)"

.PHONY: down
down: $(VENV)/demo.stamp ## stop the local stack; jobs and pictures stay in .gradcam
	@$(BIN)/gradcam down

##@ test

.PHONY: test
test: $(VENV)/test.stamp ## run all tests, against real servers, with a part of what is drawn at random; 14 min
	$(BIN)/pytest $(LANES) tests

.PHONY: test-all
test-all: $(VENV)/test.stamp ## run all tests with all that is drawn at random
	GRADCAM_TEST_PROFILE=large $(BIN)/pytest $(LANES) tests

.PHONY: test-minio
test-minio: $(VENV)/test.stamp ## run what the object store has a part in, against MinIO's S3 front end
	GRADCAM_TEST_S3=minio $(BIN)/pytest $(addprefix tests/integration/test_,$(addsuffix .py,$(ON_MINIO)))

.PHONY: check
check: deploy-check ## lint (weak code too), formatting, types (of the tests too), the direction of imports, and what deploys
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(WEAK_CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: deploy-check
deploy-check: $(VENV)/test.stamp ## lint, render and validate what deploys: images, compose, chart, alerts, dashboard
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml deploy/compose.minio.yaml
	$(BIN)/pytest --quiet $(addprefix tests/unit/test_,$(addsuffix .py,monitoring_files chart autoscaler deploy_files managed_cluster))

.PHONY: chaos
chaos: $(VENV)/test.stamp ## cause every fault we know of on real workers; a table of what was lost (nothing); 10 min
	@PYTHONPATH=.:tests/support $(BIN)/python -W ignore tests/chaos/chaos.py

.PHONY: races
races: $(VENV)/test.stamp ## let every pair of verbs race on small jobs; seeds and violations (none); 15 min
	@PYTHONPATH=.:tests/support $(BIN)/python -W ignore tests/chaos/races.py

.PHONY: fuzz
fuzz: $(VENV)/test.stamp ## throw 340,000 broken inputs at what reads them; slowest input and peak memory of each kind; 15 min
	@PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz.py --inputs 20000

# What has nothing to do with the network is part of `make check` as well.
.PHONY: audit
audit: $(VENV)/test.stamp $(VENV)/audit.stamp ## look for weak code, and for known weaknesses of the pinned packages where one can ask
	$(BIN)/ruff check --select S --ignore S603 producer worker deploy gradcam_queue
	$(WEAK_CODE)
	@$(BIN)/python tests/support/advisories.py $(AUDIT)

.PHONY: sweep
sweep: $(VENV)/test.stamp ## explain every network and compare with a reference; takes most of an hour
	@PYTHONPATH=.:tests/support $(BIN)/python -W ignore tests/sweep/sweep.py --timm

##@ measure

.PHONY: bench
bench: $(VENV)/bench.stamp ## measure speed beside others, end to end too, and how millions go in; needs a quiet machine
	@PYTHONPATH=. $(BIN)/python -W ignore tests/bench/explain.py
	@PYTHONPATH=. $(BIN)/python -W ignore tests/bench/fidelity.py
	@PYTHONPATH=. $(BIN)/python -W ignore tests/bench/job_table.py
	@PYTHONPATH=. $(BIN)/python -W ignore tests/bench/object_data.py
	@PYTHONPATH=. $(BIN)/python -W ignore tests/bench/ingest.py
	@PYTHONPATH=. $(BIN)/python -W ignore tests/bench/service.py

.PHONY: gpu-check
gpu-check: ## check a GPU: right or not, how fast; 8 min; needs torch, torchvision, OpenCV, NumPy; CHECK="--device cpu"
	@PYTHONPATH=.:tests/bench "$(GPU_PYTHON)" -W ignore tests/gpu_check/gpu_check.py $(CHECK)

.PHONY: coverage
coverage: $(VENV)/test.stamp ## run all tests and print which lines and branches they reach, those in workers too
	@rm -f .coverage .coverage.*
	COVERAGE_FILE="$(CURDIR)/.coverage" $(BIN)/coverage run -m pytest $(LANES) $(TESTS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

.PHONY: mutants
mutants: $(VENV)/test.stamp ## break a SAMPLE=30 of the job table's scripts and of the chunk core; which breaks no test sees
	$(BIN)/python tests/mutants/mutants.py lua --sample "$(SAMPLE)"
	$(BIN)/python tests/mutants/mutants.py python --sample "$(SAMPLE)"

##@ tidy

.PHONY: docs
docs: $(VENV)/test.stamp ## write what docs/ has of options, settings, commands, metrics and errors anew, from the code
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/options_page.py
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/settings_page.py
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/metrics_page.py
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/traces_page.py
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/command_docs.py > docs/commands.md
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/error_docs.py > docs/troubleshooting.md

.PHONY: site
site: $(VENV)/test.stamp ## build the website of the documentation, in build/site; a broken link ends it
	@$(BIN)/python tests/support/website.py

.PHONY: dist
dist: $(VENV)/test.stamp ## build the wheel and the source archive, in dist/, and check them
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/check-wheel-contents dist/*.whl

.PHONY: release-files
release-files: $(VENV)/test.stamp ## build this version's wheel into tests/releases/, and keep what it writes in tests/golden/
	@rm -rf build
	@PYTHONPATH=.:tests/support $(BIN)/python -W ignore tests/support/make_release.py

.PHONY: lock
lock: $(VENV)/test.stamp ## write deploy/requirements/ anew: what the images install, with hashes
	@$(BIN)/python tests/support/lock_requirements.py

.PHONY: clean
clean: ## remove the environment, caches and results; the stack's data in .gradcam stays
	rm -rf $(VENV) results build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@echo "Making the environment in $(VENV) …"
	@"$(PYTHON)" -m venv $(VENV)

# A stamp is as new as the last installation: only a change of the requirements installs again.
$(VENV)/demo.stamp: $(NEEDS) | $(BIN)/python
	@echo "Installing what the demo needs; the first time this takes some minutes …"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/test.stamp: $(NEEDS) | $(BIN)/python
	@echo "Installing what the tests need; the first time this takes some minutes …"
	@$(INSTALL) -e '.[test]'
	@touch $@ $(VENV)/demo.stamp

$(VENV)/audit.stamp: $(NEEDS) | $(BIN)/python
	@$(INSTALL) -e '.[audit]'
	@touch $@

$(VENV)/bench.stamp: $(NEEDS) | $(BIN)/python
	@$(INSTALL) -e '.[bench]'
	@touch $@
