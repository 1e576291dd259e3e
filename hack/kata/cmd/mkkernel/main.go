// Command mkkernel unpacks the kernel of the virtual machines, where it can: it boots faster so.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"cumulet.io/hack/kata/initrd"
)

func main() {
	out := flag.String("o", "", "file to write")
	flag.Parse()
	if *out == "" || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: mkkernel -o FILE VMLINUZ")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *out); err != nil {
		fmt.Fprintln(os.Stderr, "mkkernel:", err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	image, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	kernel, err := initrd.UnpackKernel(image)
	if errors.Is(err, initrd.ErrOtherKernel) {
		fmt.Fprintln(os.Stderr, "mkkernel: kept as it is:", err)
		kernel, err = image, nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(out, kernel, 0o644)
}
