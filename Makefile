# `make test` and `make demo` do everything, on a fresh machine with Python 3.11 or newer too.
# The first run installs; later ones start at once, until pyproject.toml changes.

BIN := .venv/bin
JOBS ?= 2
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install test demo bench chaos fuzz check protos web up down clean

help: ## Show this list
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: .venv/.installed ## Create .venv, install everything, make sure of a redis-server
	@deploy/local/install.sh redis

.venv/.installed: pyproject.toml deploy/local/install.sh
	@deploy/local/install.sh packages

test: install web ## Run all tests (ARGS='-k stack' to choose, JOBS=4 for more processes)
	@deploy/local/install.sh browser
	pytest -n $(JOBS) $(ARGS)

demo: install ## Start everything real, show what is reused, stop it again (PHOTO=cat.jpg VOICE=me.wav take yours, SPEECH=cosyvoice3 speaks)
	python -m deploy.demo

bench: install ## Measure hits, misses and crowds against the floors of this machine (ARGS=--quick)
	python -m tests.bench $(ARGS)

chaos: install ## Break everything in every way, show what clients see of it (ARGS='--only R3')
	python -m tests.chaos $(ARGS)

fuzz: install ## Try a million malformed inputs on every decoder (ARGS='picture --inputs 50000' chooses)
	python -m tests.fuzz $(ARGS)

check: install ## Formatting, lint, types, import contracts, the protocol and its stubs
	ruff format --check
	ruff check
	mypy --strict gateway inference cache tests deploy
	lint-imports --no-logo
	buf lint
	pytest -q tests/test_rooms.py

protos: install ## Generate the stubs from protos/
	python -m grpc_tools.protoc -I protos --python_out=protos --pyi_out=protos --grpc_python_out=protos \
	  --mypy_grpc_out=only_async:protos protos/reprise/v1/*.proto
	buf lint

web: install deploy/web/dist/index.html ## Build the playground page, which `make up` serves

deploy/web/dist/index.html: $(wildcard deploy/web/*.* deploy/web/src/*.* protos/reprise/v1/*.proto)
	@deploy/local/install.sh web

up: install web ## Start the local stack (ARGS='--workers 1 --gateways 1')
	reprise up $(ARGS)

down: ## Stop the local stack
	@if [ -x $(BIN)/reprise ]; then reprise down $(ARGS); fi

clean: down ## Stop the stack; remove the environment, the stack's data and all caches
	rm -rf deploy/web/node_modules deploy/web/gen deploy/web/dist
	rm -rf .venv .reprise out dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
