// Command cis is the user's command line: instances, their logs and their bill, with no Kubernetes needed.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"cumulet.io/cmd/cis/command"
)

// Version is set by the build.
var Version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := command.Main(ctx, command.Env{Version: Version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}
