# meshd: everything a developer needs. `make help` lists it.

GO      ?= go
CONSUL  ?= 1.20.1
# What `make test` and `make fuzz` look at; e.g. make test PKG=./internal/proxy
PKG     ?= ./...
FUZZTIME ?= 30s
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help build demo test lint fuzz bench consul check clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/meshd and bin/meshctl
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./meshd ./meshctl

demo: build ## run two agents and two applications on this machine; ARGS=--check tests itself and ends
	bin/meshctl demo $(ARGS)

test: consul ## run every test that needs no root, with the race detector, a real Consul among them
	@# The stories measure, so they do not share the machine with other packages.
	@all=$$($(GO) list $(PKG)) || exit 1; \
	rest=$$(echo "$$all" | grep -v '/e2e$$'); stories=$$(echo "$$all" | grep '/e2e$$'); \
	for p in "$$rest" "$$stories"; do \
	  [ -z "$$p" ] || $(GO) test -race -shuffle=on -timeout 15m $$p || exit 1; \
	done

consul: ## find or build the Consul that the tests start (never shipped)
	@if [ "$$CI" = true ]; then bash hack/consul.sh $(CONSUL) >/dev/null; else \
	  bash hack/consul.sh $(CONSUL) >/dev/null || echo "no Consul $(CONSUL): tests that need it will be skipped" >&2; fi

lint: ## gofmt, vet, staticcheck, the rules of the house, documents in step with the code
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	$(GO) test -count=1 .
	$(GO) test -count=1 -run 'Doc|Example|Reference' ./internal/... ./meshctl

fuzz: ## fuzz every decoder for FUZZTIME each
	@for p in $$($(GO) list $(PKG)); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; \
	  done; done

bench: ## run the Go benchmarks, ten times each, ready for benchstat
	$(GO) test -run '^$$' -bench . -benchmem -count 10 $(PKG)

check: ## what CI runs
	bash .ci/run

clean: ## remove what was built here
	rm -rf bin dist
