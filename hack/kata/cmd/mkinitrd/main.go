// Command mkinitrd makes the initial ramdisk of the virtual machines.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"

	"cumulet.io/hack/kata/initrd"
)

func main() {
	agent := flag.String("agent", "", "the program that the kernel starts as /init")
	modules := flag.String("modules", "", "directory of the kernel's modules, with modules.dep")
	out := flag.String("o", "", "file to write")
	flag.Parse()
	if *agent == "" || *modules == "" || *out == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: mkinitrd -agent FILE -modules DIR -o FILE")
		os.Exit(2)
	}
	var b bytes.Buffer
	err := initrd.Write(&b, *agent, *modules)
	if err == nil {
		err = os.WriteFile(*out, b.Bytes(), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkinitrd:", err)
		os.Exit(1)
	}
}
