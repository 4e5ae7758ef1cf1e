# `make test` installs what the tests need from outside, then runs every test. It fails when a tool is missing; it never
# skips. Tests start their own mosquitto and nats-server on ports of their own: the system's services are not used.

PYTHON  ?= python3
VENV    := tests/.venv
CLIENTS := tests/.venv-clients
INTEROP := tests/interop
CARGO   ?= cargo

.DEFAULT_GOAL := build
.PHONY: build test test-root unit interop lint deny bench tools packages clean-tools

build:
	$(CARGO) build --locked

# Everything.
test: tools unit interop

# What needs root: power cuts, full and read-only disks, on file systems of its own. It says so where it cannot run.
test-root:
	@tests/root/possible
	TOLLGATE_POWER_ROUNDS=$${TOLLGATE_POWER_ROUNDS:-20} $(CARGO) test --locked --test power --test full -- --nocapture

# What needs no program from outside: unit, model, layering, hostile peers, cuts, outages. 200 rounds of kill -9.
unit:
	TOLLGATE_CRASH_ROUNDS=$${TOLLGATE_CRASH_ROUNDS:-200} $(CARGO) test --locked

# Real clients and a real hub.
interop: tools
	$(CARGO) build --locked --bins --examples
	$(VENV)/bin/python -m unittest discover --start-directory $(INTEROP) --top-level-directory $(INTEROP)

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

# Advisories, licences, sources (deny.toml). Wants `cargo install cargo-deny` and the network.
deny:
	$(CARGO) deny check

# Memory of idle connections, and the cost of forwarding beside the floor: bench/README.md.
bench:
	bench/run

tools: packages $(VENV)/.installed $(CLIENTS)/.installed $(INTEROP)/node_modules/.package-lock.json

# Debian packages, only when a program is missing.
packages:
	@tests/packages

$(VENV)/.installed: tests/requirements.txt | packages
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
	touch $@

# Clients that need paho-mqtt 2.x: Azure's SDK pins 1.x.
$(CLIENTS)/.installed: tests/requirements-clients.txt | packages
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements-clients.txt
	touch $@

# npm writes this file when it has installed the whole lock file.
$(INTEROP)/node_modules/.package-lock.json: $(INTEROP)/package.json $(INTEROP)/package-lock.json | packages
	cd $(INTEROP) && npm ci --no-audit --no-fund --loglevel=error
	touch $@

clean-tools:
	rm -rf $(VENV) $(CLIENTS) $(INTEROP)/node_modules
