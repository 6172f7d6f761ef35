# Countersign. `make demo` and `make test` need Go, make and git, nothing else.
GO ?= go
BIN := bin/countersign
FUZZTIME ?= 30s
# Tests that find simple_switch_grpc on the PATH run on bmv2 too.
TESTFLAGS ?= -timeout 20m

.PHONY: all build demo test bench p4 generate lint fuzz clean

all: build

build: $(BIN)

$(BIN): FORCE
	$(GO) build -o $@ ./cmd/countersign

.PHONY: FORCE
FORCE:

demo: build
	./$(BIN) demo

test:
	$(GO) test $(TESTFLAGS) ./...

bench: build
	$(GO) run ./test/bench

p4:
	$(GO) run ./p4src/compile
	$(GO) run ./tables/gen

generate:
	$(GO) generate ./...

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt -w:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@$(GO) tool govulncheck ./... || { s=$$?; test $$s -eq 3 && exit 3; echo "govulncheck: skipped, the vulnerability database cannot be reached"; }

# Each fuzz target for FUZZTIME.
fuzz:
	@set -e; for f in $$(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do \
	  for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$f); do \
	    echo "== $$(dirname $$f) $$t"; $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x ./$$(dirname $$f); \
	  done; done

clean:
	rm -rf bin
