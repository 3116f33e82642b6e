# sudo make demo    see run, diff and rollback on a sample tree
# sudo make test    all tests, as root, with real mounts, shells and servers
# make              bin/deployx
# make bench        the numbers of docs/performance.md
# make soak         the long versions of the crash and random tests, a power cut between any two writes among them
# sudo make vm-test the tests on the kernels 5.10, 6.1 and 6.12, in virtual machines (KERNELS=6.1 for one)

# sudo often drops the directory that go is in from PATH.
GO      ?= $(firstword $(shell command -v go) $(wildcard /usr/local/go/bin/go /usr/lib/go/bin/go /snap/bin/go))
export PATH := $(dir $(GO)):$(PATH)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

GOFUMPT     = $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build demo test lint fuzz bench soak points setup vm-setup vm-test vm-smoke vagrant-check install clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/deployx ./cmd/deployx

demo: build
	scripts/demo.sh bin/deployx

# CI=true makes a test that cannot have root, overlay or a real server fail
# instead of being skipped.
test: setup
	CI=true $(GO) test -race -timeout 60m ./...

setup:
	scripts/setup.sh

lint:
	@out=$$($(GOFUMPT) -l .); test -z "$$out" || { echo "not gofumpt-ed:"; echo "$$out"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(STATICCHECK) ./...

# A short run of every fuzz test.
fuzz:
	scripts/fuzz.sh $(GO) 10s

# SIZES: files in the trees that are compared with other ways; a million needs
# 12 GB and an hour. TRY: the script of github.com/binpash/try, if it is wanted.
SIZES ?= 100,10000
TRY   ?=

bench: build
	$(GO) run ./bench -sizes $(SIZES) -try "$(TRY)" -out docs native compare huge
	$(GO) test -run '^$$' -bench . -benchtime 200x ./session ./overlay ./fallback ./shell ./socketio ./agent

soak:
	DEPLOYX_SOAK=1 DEPLOYX_TEST_SOAK=1 CI=true $(GO) test -timeout 24h ./overlay ./session ./fallback ./shell ./snapshot/... ./integration
	DEPLOYX_TEST_OLD=1 CI=true $(GO) test -timeout 24h ./session

vm-setup:
	scripts/setup-vm.sh

# Names the crash points that no test is killed at. The whole of the suites: as long as
# a good part of make test.
points:
	mkdir -p .cache && rm -f .cache/killed
	DEPLOYX_TEST_KILLED=$(CURDIR)/.cache/killed CI=true $(GO) test -count=1 -timeout 60m -run Crash ./session ./overlay ./fallback
	$(GO) run ./internal/crash/unkilled . .cache/killed

# Half an hour and more for each kernel: see scripts/vm-test.sh.
vm-test: vm-setup
	GO=$(GO) scripts/vm-test.sh $(KERNELS)

# One boot of 6.1: run, diff, rollback, redo and restore, the old way of a swap, and a
# power cut.
vm-smoke: vm-setup
	GO=$(GO) scripts/vm-test.sh --smoke 6.1

vagrant-check: vm-setup
	scripts/vagrant-check.sh

install: build
	install -m 0755 bin/deployx /usr/local/bin/deployx

clean:
	rm -rf bin .cache
