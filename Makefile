# The one door: a private environment, pinned dependencies, the native build when its sources changed, then the job.
#
#   make demo      set everything up and run the demonstration         make bench     the speed table
#   make test      everything that must hold (what CI runs)            make soak      the long versions of the tests
#   make lint      formats, clippy, ruff, mypy, stubtest               make mutants   each planted fault and the test that kills it
#   make wheel     an abi3 wheel, tried in an empty environment        make sdist     the source archive, tried the same way
#   make docs      the documentation, warnings are errors              make bench AGAINST=REF   this tree against another commit
#
# PYTHON=python3.12 chooses the interpreter, VENV=dir the environment, PYTEST="-k name" adds to pytest's arguments.

PYTHON ?= python3
VENV   ?= .venv
PYTEST ?=
AGAINST ?=
DIST   ?= dist

BIN   := $(VENV)/bin
PY    := $(BIN)/python
PIP   := $(PY) -m pip --disable-pip-version-check install -q --no-input -c constraints.txt
# maturin looks for its tools and for the environment to build for in these two.
ENVIRON := PATH="$(abspath $(BIN)):$$PATH" VIRTUAL_ENV="$(abspath $(VENV))"

NATIVE  := $(shell find src -name '*.rs' 2>/dev/null) Cargo.toml Cargo.lock pyproject.toml
LIBRARY := $(wildcard python/kvm_mmu/_core*.so)

# The requirements of pyproject.toml, read from there: build tools, base install, and the extras named.
define requirements
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    read = tomllib.load(file)
extras = read["project"]["optional-dependencies"]
print(*read["build-system"]["requires"], *read["project"]["dependencies"], *(r for e in sys.argv[1:] for r in extras[e]), sep="\n")
endef
export requirements
install = $(PY) -c "$$requirements" $(1) > $@.txt && $(PIP) -r $@.txt && touch $@

.PHONY: help demo test test-crate lint bench soak mutants wheel sdist docs clean constraints build FORCE
.DELETE_ON_ERROR:

help:
	@sed -n '3,9s/^# *//p' Makefile

# --- the environment -----------------------------------------------------------------------------------------------

$(PY):
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON): install Python 3.11 or newer, or say where one is: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) -V) is too old: 3.11 or newer is needed, make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv module: install python3-venv" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "make: no cargo: install Rust 1.95 or newer (rustup, or the package cargo where it is new enough)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: constraints.txt pyproject.toml | $(PY)
	@$(call install,plot)
$(VENV)/.test: constraints.txt pyproject.toml | $(VENV)/.base
	@$(call install,plot data live dask test docs)
$(VENV)/.lint: constraints.txt pyproject.toml | $(VENV)/.test
	@$(call install,plot data live dask test docs dev)
$(VENV)/.dist: constraints.txt pyproject.toml | $(VENV)/.base
	@$(call install,dist)

# The native module, release profile, in place: built again when its sources changed or the library is gone.
$(VENV)/.built: $(NATIVE) $(if $(LIBRARY),,FORCE) | $(VENV)/.base
	@command -v cargo >/dev/null || { echo "make: no cargo: install Rust 1.95 or newer" >&2; exit 1; }
	@echo "building the native module (one to two minutes the first time)" >&2
	@$(ENVIRON) $(PY) -m pip --disable-pip-version-check install -q --no-input --no-build-isolation --no-deps -e .
	@touch $@
FORCE:

build: $(VENV)/.built

# --- the jobs ------------------------------------------------------------------------------------------------------

demo: $(VENV)/.built
	@$(BIN)/kvm-mmu demo

# The module links with few threads at its end: the tests of the crate are built and run beside it.
test: $(VENV)/.test
	@$(MAKE) --no-print-directory -j2 build test-crate
	$(PY) -m pytest -n auto --dist worksteal $(PYTEST)

test-crate: | $(VENV)/.base
	PROPTEST_RNG_SEED=20190110 cargo test --quiet

lint: $(VENV)/.lint $(VENV)/.built
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --features python -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(ENVIRON) $(PY) -m mypy.stubtest kvm_mmu._core

bench: $(VENV)/.test $(VENV)/.built
	$(PY) $(if $(AGAINST),benches/against.py $(AGAINST),benches/run.py)

soak: $(VENV)/.test $(VENV)/.built
	KVM_MMU_SOAK=1 $(PY) -m pytest -o faulthandler_timeout=0 $(PYTEST)

mutants: $(VENV)/.test $(VENV)/.built
	$(PY) tests/mutants/run.py

# For the machine it runs on. zig (from PyPI) links against the C library of GLIBC, the oldest that the wheel claims to
# run with; check_dist.py reads in the library whether it does. The linker is another one, so the objects live apart.
GLIBC ?= 2_28
# No path of this machine stands in the library: its panics name files of the tree and of the registry by their ends.
REMAP = $(foreach at,$(CURDIR) $(wildcard $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src/*),--remap-path-prefix=$(at)=.)
wheel: $(VENV)/.dist
	@mkdir -p $(DIST)
	$(ENVIRON) RUSTFLAGS="$(REMAP)" $(BIN)/maturin build --quiet --release --locked --zig \
		--compatibility manylinux_$(GLIBC) --target-dir target/wheel --out $(DIST)
	$(PYTHON) tests/binding/check_dist.py wheel $(DIST)

sdist: $(VENV)/.base
	@mkdir -p $(DIST)
	$(ENVIRON) $(BIN)/maturin sdist --out $(DIST)
	$(PYTHON) tests/binding/check_dist.py sdist $(DIST)

docs: $(VENV)/.test $(VENV)/.built
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(DIST) demo-out bench-out docs/_build .hypothesis .benchmarks .mypy_cache .ruff_cache .pytest_cache
	find python tests examples benches -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f python/kvm_mmu/_core*.so $(VENV)/.built
	cargo clean --quiet

# Renews constraints.txt from the newest versions that the extras allow, in an environment of its own.
constraints:
	rm -rf $(VENV)-constraints && $(PYTHON) -m venv $(VENV)-constraints
	$(PYTHON) -c "$$requirements" plot data live dask test dev docs dist > $(VENV)-constraints/.requirements
	$(VENV)-constraints/bin/pip install -q -r $(VENV)-constraints/.requirements
	{ sed -n '/^#/p' constraints.txt; $(VENV)-constraints/bin/pip freeze; } > constraints.new && mv constraints.new constraints.txt
	rm -rf $(VENV)-constraints
