# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv, build, and run.
# Needs python3 (3.10 or newer) with venv, a C++20 compiler and make; nvcc is used if it is found.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CPP := $(shell find src tests benchmarks -name '*.cpp' -o -name '*.hpp' -o -name '*.cu' -o -name '*.cuh')
# `make CUDA=OFF test` leaves the CUDA module out; for releases CUDA_ARCHITECTURES='75-real;80-real;90-real;100-real;120'.
CUDA ?= AUTO
CUDA_ARCHITECTURES ?= 80
INSTALL := $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps
DEFINES := -C cmake.define.AISEC_WERROR=ON -C cmake.define.AISEC_CUDA=$(CUDA) \
           -C "cmake.define.AISEC_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)"

# Python compiles a module when it is first imported; pip would compile all there are, which takes a minute and a half on one
# core. So Python must be allowed to keep what it compiled.
PIP := $(BIN)/python -m pip install --quiet --no-compile
export PYTHONDONTWRITEBYTECODE :=

.NOTPARALLEL:
.PHONY: help demo test lint unit unit-without-jit asan tsan tidy bench bench-pytest bench-guard fuzz format clean

help:
	@echo 'make demo    train a real model privately, attack it, seal it, see what it costs (two minutes after the build)'
	@echo 'make test    everything that CI runs: lint, types, build, all tests, coverage'
	@echo 'make bench   kernels beside peers and floor, as a page  make format  format Python and C++'
	@echo 'make bench-guard    no kernel may need more instructions than is committed (valgrind)'
	@echo 'make asan    all tests under AddressSanitizer + UBSan  make tsan    the threaded tests under ThreadSanitizer'
	@echo 'make fuzz    the parsers under a coverage-guided fuzzer, SECONDS=60 for each'
	@echo 'make tidy    clang-tidy                                make clean   remove .venv and build'

# torch first and by pip: pulled in by another package, or by another installer, it brings gigabytes of CUDA.
# torchattacks (whose answers tests compare with) on its own: it would bring torchvision and an old requests, which its
# attacks never import; what they do import, torch and scipy, is here.
$(VENV)/packages: pyproject.toml
	@echo '-- making $(VENV) (the first time this downloads about 500 MB)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) torch==2.13.0
	@$(PIP) --group dev dp-accounting jinja2 numba numpy plotly rich scikit-learn
	@$(PIP) --no-deps torchattacks==3.5.1
	@touch $@

$(READY): $(VENV)/packages CMakeLists.txt $(shell find src -type f)
	@echo '-- building the kernels (one to two minutes)'
	@$(INSTALL) $(DEFINES) --editable .
	@touch $@

demo: $(READY)
	@$(BIN)/aisec-fast demo --json demo.json

# mypy keeps one core busy for most of a minute and needs nothing that is built: lint runs beside the build.
test: $(VENV)/packages
	@$(MAKE) --no-print-directory lint & lint=$$!; $(MAKE) --no-print-directory $(READY); built=$$?; wait $$lint && exit $$built
	@$(MAKE) --no-print-directory unit unit-without-jit
	@echo '-- instructions of the hot kernels'
	@$(BIN)/python benchmarks/guard/guard.py --if-possible
	@echo '-- all of make test passed'

lint: $(VENV)/packages
	@echo '-- lint, types, repository review'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CPP)
	@$(BIN)/repo-review . --show err

# Two files at a time: most tests use one core, and torch's threads must not spin on the other while they wait.
WORKERS := -n 2 --dist loadfile
TESTS := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

unit: $(READY)
	@echo '-- tests'
	@$(TESTS) $(WORKERS) --cov --cov-report= --cov-fail-under=0 $(PYTEST)

# The Numba kernels once more as plain Python, where an out-of-range index is an error and not a wild read, and where
# coverage sees them: the threshold is for both runs together.
unit-without-jit: $(READY)
	@echo '-- contract tests of the Numba backend without its compiler'
	@NUMBA_DISABLE_JIT=1 $(TESTS) -q $(WORKERS) --cov --cov-append -k numba tests/test_noise.py \
	  tests/test_noise_integers.py tests/test_clipping.py tests/test_ghost.py tests/test_hashing.py tests/test_adversarial.py \
	  tests/test_update.py tests/test_records.py tests/test_records_reference.py

# Sanitizer builds go to a folder of their own; -S keeps the editable install's import hook from hiding them. The interpreter
# is not instrumented, so the runtimes are preloaded; leaks are not looked for: CPython and torch keep memory on purpose.
# SIGBUS is left to our handler and to the tests', which find the runtimes' own in its place otherwise.
comma := ,
sanitized = $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --upgrade --target build/$(1)/site . \
  -C build-dir=build/$(1)/cmake -C cmake.build-type=RelWithDebInfo -C cmake.define.AISEC_CUDA=OFF -C cmake.define.AISEC_SANITIZE=$(2)
library = $$(g++ -print-file-name=lib$(1).so)
SANITIZED_TESTS := -m pytest -q -p no:cacheprovider -m 'not installs'
SITE = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# ThreadSanitizer's own runtime does not survive threads started in a forked child ("dup thread with used id", now and then),
# and its shadow of 8 GiB is four times as large. It has a thread of its own, and ends a process that reads what it may not.
# Where Linux spreads addresses over more bits than it knows, it ends at once.
FIXED_ADDRESSES := $(if $(shell command -v setarch),setarch -R)
TSAN_LEAVES_OUT := --deselect tests/test_clipping.py::test_huge_row_needs_64_bit_addresses \
                   --deselect tests/test_noise.py::test_huge_array_needs_64_bit_addresses \
                   --deselect tests/test_privacy.py::test_loader_settings_are_kept_and_workers_work \
                   --deselect tests/test_records.py::test_nothing_outside_the_records_is_read \
                   --deselect tests/test_runtime.py::test_workers_leave_the_callers_processor \
                   --deselect tests/test_runtime.py::test_a_forked_child_computes

asan: $(READY)
	@$(call sanitized,asan,address$(comma)undefined)
	LD_PRELOAD="$(call library,asan) $(call library,ubsan) $(call library,stdc++)" ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 \
	PYTHONPATH=$(CURDIR)/build/asan/site:$(SITE) $(BIN)/python -S $(SANITIZED_TESTS) $(PYTEST)

tsan: $(READY)
	@$(call sanitized,tsan,thread)
	AISEC_FAST_OWN_THREADS=1 LD_PRELOAD="$(call library,tsan) $(call library,stdc++)" TSAN_OPTIONS=ignore_noninstrumented_modules=1:die_after_fork=0:handle_sigbus=0 \
	PYTHONPATH=$(CURDIR)/build/tsan/site:$(SITE) $(FIXED_ADDRESSES) $(BIN)/python -S $(SANITIZED_TESTS) $(TSAN_LEAVES_OUT) $(PYTEST)

tidy: $(READY)
	@$(BIN)/clang-tidy -p $$(dirname $$(find build -name compile_commands.json | head -1)) --quiet $$(find src/cpp -name '*.cpp')

bench: $(READY)
	@$(BIN)/aisec-fast bench --json benchmarks.json --html benchmarks.html $(BENCH)
	@echo '-- wrote benchmarks.html and benchmarks.json'

# The same cases under pytest-benchmark, for its storage, comparison and histograms.
bench-pytest: $(READY)
	@$(BIN)/python -m pytest benchmarks/bench_*.py --benchmark-only --benchmark-columns=median,iqr,rounds -q

# Instruction counts of the hot kernels against committed numbers; UPDATE=1 writes those of this build.
bench-guard: $(READY)
	@echo '-- instructions of the hot kernels'
	@$(BIN)/python benchmarks/guard/guard.py $(if $(UPDATE),--update)

format: $(READY)
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet . ; $(BIN)/clang-format -i $(CPP)

# Coverage-guided, every parser of what others wrote. SECONDS=600 is what benchmarks/evidence/results/ has.
FUZZED := checksum_file manifest results arguments names
SECONDS ?= 60
fuzz: $(READY)
	@$(BIN)/python -m pip install --quiet --group fuzz
	@for parser in $(FUZZED); do echo "-- $$parser"; mkdir -p build/fuzz; \
	  $(BIN)/python tests/fuzz/fuzz.py $$parser build/fuzz/$$parser -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=2048 \
	    -max_len=16384 -verbosity=0 -artifact_prefix=build/fuzz/ || exit 1; done

clean:
	rm -rf $(VENV) build
