package capture

import (
	"bytes"
	"time"

	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
)

// maxLine is the longest text of one record in bytes; a longer line becomes several, all but the last marked as pieces.
// It is containerd's default.
const maxLine = 16 << 10

// appendRecords makes log records of whole lines, all with one time, and tells how much of raw they are. With flush the
// rest becomes a piece. As containerd does, a carriage return before the end of a line is dropped.
//
// What it makes of a part of raw that ends where a record does is, with flush, what it made of that part before.
func appendRecords(dst, raw []byte, stream logs.Stream, at time.Time, flush bool) (out []byte, used int) {
	for used < len(raw) {
		rest := raw[used:]
		i := bytes.IndexByte(rest[:min(len(rest), maxLine+1)], '\n')
		e := crilog.Entry{Time: at, Stream: stream}
		switch {
		case i >= 0:
			e.Text = bytes.TrimSuffix(rest[:i], []byte{'\r'})
			used += i + 1
		case len(rest) > maxLine || flush:
			e.Text, e.Partial = rest[:min(len(rest), maxLine)], true
			used += len(e.Text)
		default:
			return dst, used
		}
		dst = crilog.AppendRecord(dst, e)
	}
	return dst, used
}
