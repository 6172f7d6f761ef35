// Command schemagen writes the JSON Schema of the configuration.
package main

import (
	"flag"
	"fmt"
	"os"

	"countersign/controller/config"
)

func main() {
	out := flag.String("out", "docs/controller.schema.json", "file to write")
	flag.Parse()
	s, err := config.Schema()
	if err == nil {
		err = os.WriteFile(*out, s, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "schemagen:", err)
		os.Exit(1)
	}
}
