// Package initrd makes the initial ramdisk that a virtual machine boots: an
// archive of files in cpio's "newc" format, which the kernel unpacks into memory
// before it starts /init, and the kernel's modules that the guest needs.
package initrd

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Types of a file's mode, as in stat(2).
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
)

// Writer writes an archive. Parents of what it is given are made as needed. The
// same calls make the same bytes: no time, user or inode of this machine gets in.
type Writer struct {
	w    io.Writer
	made map[string]bool
	ino  uint32
}

// NewWriter returns a writer of an empty archive.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, made: map[string]bool{}} }

// Dir adds a directory.
func (w *Writer) Dir(name string, perm uint32) error {
	if w.made[clean(name)] {
		return nil
	}
	return w.add(name, typeDir|perm, 0, 0, nil)
}

// File adds a regular file.
func (w *Writer) File(name string, perm uint32, content []byte) error {
	return w.add(name, typeFile|perm, 0, 0, content)
}

// Char adds a character device.
func (w *Writer) Char(name string, perm, major, minor uint32) error {
	return w.add(name, typeChar|perm, major, minor, nil)
}

// Close ends the archive; it does not close what it was written to.
func (w *Writer) Close() error { return w.entry("TRAILER!!!", 0, 0, 0, nil) }

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (w *Writer) add(name string, mode, major, minor uint32, content []byte) error {
	name = clean(name)
	if name == "" || w.made[name] {
		return fmt.Errorf("cpio: %q is in the archive already", name)
	}
	if dir := path.Dir(name); dir != "." {
		if err := w.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	w.made[name] = true
	return w.entry(name, mode, major, minor, content)
}

// entry writes a header of 13 hexadecimal numbers, the name and the content,
// the last two each padded to 4 bytes (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
func (w *Writer) entry(name string, mode, major, minor uint32, content []byte) error {
	if int64(len(content)) > 1<<32-1 {
		return fmt.Errorf("cpio: %s: %d bytes are more than the format allows", name, len(content))
	}
	w.ino++
	var b strings.Builder
	b.WriteString("070701")
	for _, v := range []uint32{w.ino, mode, 0, 0, 1, 0, uint32(len(content)), 0, 0, major, minor, uint32(len(name) + 1), 0} {
		fmt.Fprintf(&b, "%08X", v)
	}
	b.WriteString(name)
	b.WriteByte(0)
	for _, part := range [][]byte{[]byte(b.String()), content} {
		part = append(part[:len(part):len(part)], make([]byte, -len(part)&3)...)
		_, err := w.w.Write(part)
		if err != nil {
			return fmt.Errorf("cpio: %w", err)
		}
	}
	return nil
}
