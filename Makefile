# libpeftswift. `make` lists what there is to do; each target makes what it needs first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VERSION := 1.0.0
SONAME  := libpeftswift.so.1
LIBRARY := build/$(SONAME)
MODEL   := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
PYTHON  := .venv/bin/python

PREFIX  ?= /usr/local
DESTDIR ?=
LIBDIR  ?= $(PREFIX)/lib
DEST    := $(DESTDIR)$(PREFIX)
LIBDEST := $(DESTDIR)$(LIBDIR)

.PHONY: help
help: ## This list
	@echo "libpeftswift $(VERSION): fine-tuning and running neural networks inside your process"
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r t d; do printf '  make %-14s %s\n' "$$t" "$$d"; done
	@echo
	@echo "  A first look: make demo.  PREFIX=$(PREFIX)"

# ---------------------------------------------------------------------------------------------------- building

.PHONY: setup
setup: ## Install what is missing on this machine (apt)
	@scripts/setup.sh

# The Swift runtime is linked in: the shared one takes over seven of the host's signals when it is loaded.
# Only peft_* is exported (packaging/peftswift.map), and the library stays mapped after dlclose (Swift cannot be unloaded).
# Small: code without a user is dropped, relative relocations are packed (needs glibc 2.36), and of the runtime the names
# of Unicode's characters (Sources/StaticRuntime), functions and types without a user (scripts/split_functions.py, slim_runtime.py)
# and the unwinding tables stay out: nothing in it throws or catches.
RUNTIME := .build-library/runtime/libswiftCore.a
LINK    := -soname=$(SONAME) --version-script=$(CURDIR)/packaging/peftswift.map --gc-sections --icf=all -znodelete \
           -zpack-relative-relocs --wrap=_swift_stdlib_getScalarName --remap-inputs=*/libswiftCore.a=$(CURDIR)/$(RUNTIME) \
           --no-eh-frame-hdr $(CURDIR)/packaging/peftswift.ld
LIBRARY_BUILD := swift build -c release --product peftswift --scratch-path .build-library \
                 -Xswiftc -static-stdlib -Xswiftc -use-ld=lld $(addprefix -Xlinker ,$(LINK))
LIBRARY_SOURCES := Package.swift Makefile packaging/peftswift.map packaging/peftswift.ld $(shell find Sources include -type f)

.PHONY: library
library: $(LIBRARY) ## Build the release library: build/libpeftswift.so.1
$(LIBRARY): $(LIBRARY_SOURCES) $(RUNTIME)
	@rm -f .build-library/release/libpeftswift.so  # linked anew: SwiftPM does not watch the runtime
	$(LIBRARY_BUILD)
	@python3 scripts/slim_runtime.py --check .build-library/release/*.build/*.o
	@mkdir -p build
	strip --strip-unneeded -o $@.new .build-library/release/libpeftswift.so
	@mv $@.new $@
	@ln -sf $(SONAME) build/libpeftswift.so
	@ls -l $@ | awk '{ printf "%s: %.2f MB\n", $$NF, $$5 / 1e6 }'

$(RUNTIME): scripts/slim_runtime.py scripts/split_functions.py
	@scripts/setup.sh --check
	@mkdir -p $(@D)
	@static=$$(swiftc -static-stdlib -print-target-info | sed -n 's/.*"runtimeResourcePath": "\(.*\)".*/\1/p'); \
	  "$${static%/lib/swift_static}/bin/llvm-objcopy" --remove-section=.eh_frame --remove-section=.llvm_addrsig "$$static/linux/libswiftCore.a" $@
	@cd $(@D) && ar x $(@F) Swift.o && { python3 $(CURDIR)/scripts/split_functions.py Swift.o || echo "another Swift: the library works, and is larger"; } && \
	  ar r $(@F) Swift.o && rm Swift.o
	@python3 scripts/slim_runtime.py $@

# ---------------------------------------------------------------------------------------------------- examples

EXAMPLES := $(patsubst examples-c/%.c,build/%,$(wildcard examples-c/*.c))
CFLAGS   ?= -O2
WARNINGS := -std=c99 -Wall -Wextra -Wpedantic -Werror

.PHONY: examples
examples: $(EXAMPLES) ## Build the C programs of examples-c/ into build/
build/%: examples-c/%.c include/peftswift.h $(LIBRARY)
	$(CC) $(WARNINGS) $(CFLAGS) -Iinclude $< -o $@ -Lbuild -lpeftswift -lm -Wl,-rpath,'$$ORIGIN'

# ---------------------------------------------------------------------------------------------------- inputs, demos

.PHONY: model
model: $(MODEL) ## Fetch the model of the demos once (SmolLM2-135M-Instruct, GGUF, 98 MB)
$(MODEL): | $(PYTHON)
	@$(PYTHON) scripts/fetch_inputs.py smollm2

$(PYTHON): scripts/requirements.txt
	@echo "Making .venv (Python packages of scripts/requirements.txt)"
	@python3 -m venv .venv || { echo "python3 cannot make a virtual environment; try: make setup" >&2; rm -rf .venv; exit 1; }
	@.venv/bin/pip install --quiet --disable-pip-version-check -r $< \
	  || { echo "pip could not install $<; is this machine online?" >&2; rm -rf .venv; exit 1; }
	@touch $@

.PHONY: inputs
inputs: | $(PYTHON) ## Fetch the weights and data of the jobs on real ones (Tests/Python/test_jobs.py; 0.5 GB once)
	@$(PYTHON) scripts/fetch_inputs.py minilm reuters whisper speech channels vit stamps tagger reversi

.PHONY: demo demo-text
demo: setup examples $(MODEL) ## Fine-tune a game character on the quantised model and talk to it (5 minutes)
	@scripts/demo.sh
demo-text: setup examples $(MODEL) ## The same on a Jane Austen novel: held-out perplexity before and after
	@scripts/demo_text.sh

# ---------------------------------------------------------------------------------------------------- tests

.PHONY: test
test: ## Run all tests (scripts/test.sh; one layer: make test-unit, …)
	@scripts/test.sh
TEST_LAYERS := unit c instructions examples install python golden
.PHONY: $(addprefix test-,$(TEST_LAYERS))
test-unit: ## Swift unit tests of every room
test-c: ## The C interface: programs in Tests/CInterface
test-instructions: ## How many instructions fixed jobs need (valgrind)
test-examples: ## examples-c/ with -Werror, run on a small model
test-install: ## An outside C program through pkg-config and through CMake
test-python: ## The Python binding, from a wheel in a fresh environment
test-golden: ## Conformance with HF PEFT's numbers (Tests/Golden)
$(addprefix test-,$(TEST_LAYERS)): test-%:
	@scripts/test.sh $*

# ---------------------------------------------------------------------------------------------------- measuring

.PHONY: bench bench-quick bench-methods
bench: $(LIBRARY) $(MODEL) ## Measure speed and memory beside the peers (Benchmarks/)
	@Benchmarks/run.sh
bench-quick: $(LIBRARY) $(MODEL) ## The same without the peers
	@Benchmarks/run.sh --quick
bench-methods: $(LIBRARY) $(MODEL) ## A step of every adapter method beside LoRA's, seconds and memory (Benchmarks/methods.py, also beside PEFT)
	@PEFTSWIFT_LIBRARY=$(CURDIR)/$(LIBRARY) PYTHONPATH=bindings/python $(PYTHON) Benchmarks/methods.py table $(MODEL) --quick

# ---------------------------------------------------------------------------------------------------- installing

.PHONY: install uninstall
install: $(LIBRARY) ## Install library, header, pkg-config and CMake files: PREFIX=, LIBDIR=, DESTDIR=
	install -d $(LIBDEST)/pkgconfig $(LIBDEST)/cmake/peftswift $(DEST)/include
	install -m 755 $(LIBRARY) $(LIBDEST)/libpeftswift.so.$(VERSION)
	ln -sf libpeftswift.so.$(VERSION) $(LIBDEST)/$(SONAME)
	ln -sf $(SONAME) $(LIBDEST)/libpeftswift.so
	install -m 644 include/peftswift.h $(DEST)/include/
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' packaging/peftswift.pc.in > $(LIBDEST)/pkgconfig/peftswift.pc
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' packaging/peftswift-config.cmake.in > $(LIBDEST)/cmake/peftswift/peftswift-config.cmake
	sed -e 's|@VERSION@|$(VERSION)|' packaging/peftswift-config-version.cmake.in > $(LIBDEST)/cmake/peftswift/peftswift-config-version.cmake
	@if [ -z "$(DESTDIR)" ] && [ "$$(id -u)" = 0 ]; then ldconfig || true; fi
uninstall: ## Remove what install put there
	rm -f $(LIBDEST)/libpeftswift.so $(LIBDEST)/libpeftswift.so.* $(DEST)/include/peftswift.h $(LIBDEST)/pkgconfig/peftswift.pc
	rm -rf $(LIBDEST)/cmake/peftswift

.PHONY: wheel
wheel: $(LIBRARY) $(PYTHON) ## Build the Python wheel with the library inside: dist/
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist bindings/python
	@ls dist/*.whl

# ---------------------------------------------------------------------------------------------------- house-keeping

SWIFT_FILES := Package.swift Sources Tests
.PHONY: format lint clean
format: ## Lay out the Swift sources (swift-format)
	swift format format --in-place --recursive --parallel $(SWIFT_FILES)
lint: ## Say what format would change, and what the rules forbid
	swift format lint --strict --recursive --parallel $(SWIFT_FILES)
clean: ## Remove everything built (fetched models in .cache stay)
	rm -rf .build .build-library build dist bindings/python/build bindings/python/*.egg-info
