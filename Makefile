# The commands of the house. Recipes only name scripts: what they do is in ci/, callable without make.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
SCALE ?= small
PYTHON_BIN := $(VENV)/bin/python
ARTIFACTS := $(filter-out common,$(patsubst %/pyproject.toml,%,$(wildcard */pyproject.toml)))
export VENV := $(abspath $(VENV))

.PHONY: help setup setup-demo build demo test kick-tires claims report lint docker data clean $(ARTIFACTS)

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo "per artifact: $(foreach a,$(ARTIFACTS),$a $a-claims $a-test $a-<experiment>)  [SCALE=smoke|small|paper]"

setup: ## system packages where permitted, .venv, pinned requirements, our packages; idempotent
	@ci/setup test
setup-demo:
	@ci/setup demo

build: setup ## recompile the C++ modules in place
	@ci/build

demo: setup-demo ## each artifact's demo on real input, the claims table, the report
	@$(PYTHON_BIN) ci/reproduce.py demo $(SCALE)
	@$(PYTHON_BIN) ci/report.py --scale $(SCALE)

test: setup ## lint and every test
	@ci/test

kick-tires: setup-demo ## every experiment at scale smoke, a PASS table
	@$(PYTHON_BIN) ci/reproduce.py all smoke
	@$(PYTHON_BIN) ci/report.py --scale smoke --gate

claims: setup-demo ## every experiment at scale small, then the gated claims decide; renders the tables
	@$(PYTHON_BIN) ci/reproduce.py all $(SCALE)
	@$(PYTHON_BIN) ci/report.py --scale $(SCALE) --gate --artifact-md

report: setup-demo ## the report and the claims tables from the runs that are there
	@$(PYTHON_BIN) ci/report.py

lint: setup ## ruff, mypy, clang-format, codespell, shellcheck, yamllint, hadolint, walls (FULL=1: clang-tidy)
	@ci/lint

docker: setup ## hadolint; with DOCKER_TEST=1 also builds and runs the image
	@ci/docker_test

data: ## real data as Debian packages, and what is there
	@ci/setup demo
	@$(foreach a,$(ARTIFACTS),$(VENV)/bin/$(subst _,-,$a) doctor;)

clean: ## builds, caches, stamps and the environment; runs/ and report/ stay
	rm -rf build .stamps .mypy_cache .ruff_cache .pytest_cache $(VENV) $(foreach a,$(ARTIFACTS) common,$a/build)

# pipe_bd            its demo and its report
# pipe_bd-claims     all its experiments, gated
# pipe_bd-test       its tests
# pipe_bd-fig5       one experiment by its name, e.g. pipe_bd-virtual_devices SCALE=small
define artifact_rules
$(1): setup-demo
	@$$(PYTHON_BIN) ci/reproduce.py demo $$(SCALE) $(1)
	@$$(PYTHON_BIN) ci/report.py --scale $$(SCALE) $(1)

.PHONY: $(1)-claims $(1)-test
$(1)-claims: setup-demo
	@$$(PYTHON_BIN) ci/reproduce.py all $$(SCALE) $(1)
	@$$(PYTHON_BIN) ci/report.py --scale $$(SCALE) --gate --artifact-md $(1)

$(1)-test: setup
	@ci/test $(1)

$(1)-%: setup-demo
	@$$(VENV)/bin/$(subst _,-,$(1)) reproduce $$* --scale $$(SCALE)
endef
$(foreach a,$(ARTIFACTS),$(eval $(call artifact_rules,$a)))
