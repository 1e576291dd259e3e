// Command filebeat is Elastic's Filebeat, unchanged, built from its Go module:
// the log shipper Cumulet supervises. It is a module of its own because its
// dependencies are years older than the product's.
package main

import (
	"os"

	"github.com/elastic/beats/v7/filebeat/cmd"
	inputs "github.com/elastic/beats/v7/filebeat/input/default-inputs"
)

func main() {
	if err := cmd.Filebeat(inputs.Init, cmd.FilebeatSettings()).Execute(); err != nil {
		os.Exit(1)
	}
}
