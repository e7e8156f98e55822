# The front door. `make` builds build/autosp; `make demo` runs the main job; `make test` passes the tests.
# On Debian the first two steps install what they need with apt-get and say so (scripts/setup.sh).
.PHONY: all setup demo test bench clean
BUILD := build
CMAKE_FLAGS := -G Ninja

all: $(BUILD)/autosp

$(BUILD)/autosp: setup FORCE
	@cmake -S . -B $(BUILD) $(CMAKE_FLAGS) -DCMAKE_BUILD_TYPE=Release -DAUTOSP_TESTS=OFF > $(BUILD).log 2>&1 || { cat $(BUILD).log; rm -f $(BUILD).log; exit 1; }
	@rm -f $(BUILD).log
	@cmake --build $(BUILD)

setup:
	@scripts/setup.sh

demo: all
	@scripts/demo.sh

test: setup
	@scripts/test.sh

bench: all
	@bench/run.sh

clean:
	rm -rf build build-test build-asan build-tsan

FORCE:
