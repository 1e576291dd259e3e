// Command app is the quickstart's demo workload: one static binary that can serve, work and count.
//
//	app serve [--addr :8080]     answers HTTP with who and where it is, logs each request and a tick a second
//	app work --lines N           prints N numbered lines and ends (a Job); --exit CODE is how
//	app env NAME…                prints environment variables and ends
//	app cat FILE…                prints files and ends
//	app size                     prints the terminal's rows and columns, and again when they change
//	app stamp                    prints the nanosecond in which it began, then sleeps: what start benchmarks measure
//
// It is not part of the product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	began := time.Now()
	if len(os.Args) > 1 && os.Args[1] == "stamp" {
		fmt.Println(began.UnixNano())
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		<-ctx.Done()
		stop()
		return
	}
	var code exitCode
	if err := run(os.Args[1:]); errors.As(err, &code) {
		os.Exit(int(code))
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

// exitCode is how the program was asked to end.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func run(args []string) error {
	if len(args) == 0 {
		args = []string{"serve"}
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	addr := fs.String("addr", ":8080", "listen address")
	lines := fs.Int("lines", 10, "lines to print")
	every := fs.Duration("every", 0, "pause between lines")
	code := fs.Int("exit", 0, "exit code")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch args[0] {
	case "serve":
		return serve(ctx, *addr)
	case "work":
		if err := work(ctx, *lines, *every); err != nil || *code == 0 {
			return err
		}
		return exitCode(*code)
	case "env":
		for _, name := range fs.Args() {
			fmt.Printf("%s=%s\n", name, os.Getenv(name))
		}
		return nil
	case "cat":
		for _, name := range fs.Args() {
			text, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if _, err := os.Stdout.Write(text); err != nil {
				return err
			}
		}
		return nil
	case "size":
		return size(ctx)
	}
	return fmt.Errorf("unknown command %q: serve, work, env or size", args[0])
}

// work prints numbered lines, so that a reader of the log sees at once whether one is missing, doubled or out of order.
func work(ctx context.Context, lines int, every time.Duration) error {
	for i := 1; i <= lines; i++ {
		fmt.Printf("line %d of %d\n", i, lines)
		if every > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(every):
			}
		}
	}
	return nil
}

func serve(ctx context.Context, addr string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	kernel, err := os.ReadFile("/proc/version")
	if err != nil {
		kernel = []byte("unknown kernel\n")
	}
	fmt.Printf("serving on %s as %s, kernel: %s", addr, host, kernel)
	srv := &http.Server{Addr: addr, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s from %s\n", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintf(w, "hello from %s (%s)\n", host, os.Getenv("GREETING"))
	})}
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				fmt.Printf("tick %d\n", n)
			}
		}
	}()
	stopped := context.AfterFunc(ctx, func() {
		fmt.Println("asked to stop")
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		_ = srv.Shutdown(grace) //nolint:errcheck // the process ends next
	})
	defer stopped()
	if err := srv.ListenAndServe(); err != http.ErrServerClosed { //nolint:errorlint // returned unwrapped by contract
		return err
	}
	fmt.Println("bye")
	return nil
}
