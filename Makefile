# Two commands set everything up:
#
#	make demo   build dhow, then build and run the example
#	make test   run all tests
#
# The others are for daily work: build, unit, lint, fuzz, bench, compare.

export CGO_ENABLED := 0
GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
PREFIX ?= /usr/local

.PHONY: build install demo test test-vm unit lint fuzz bench compare baseimages clean

build:
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/dhow ./cmd/dhow

install: build
	install -D -m 0755 bin/dhow $(DESTDIR)$(PREFIX)/bin/dhow

demo: build
	./scripts/demo

test:
	./scripts/test

# The sandbox on a virtual machine with cgroup version 2 and AppArmor.
test-vm:
	./scripts/test-vm

# The packages alone: no scripts, nothing to install.
unit:
	$(GO) test $$($(GO) list ./... | grep -v '/test$$')

lint:
	$(GO) vet ./...
	./scripts/staticcheck ./...

# FUZZTIME=1m make fuzz
fuzz:
	./scripts/fuzz $${FUZZTIME:-10s}

# Writes bench/RESULTS.md. Runs every peer that is installed; see bench/README.md.
bench: build
	$(GO) run ./bench

# PEER names a directory with BuildKit's buildkitd and docker's buildx.
compare:
	DHOW_PEER=$${PEER:?a directory with buildkitd and buildx} $(GO) test -count=1 ./test

baseimages:
	$(GO) run ./scripts/baseimages

clean:
	rm -rf bin dist
