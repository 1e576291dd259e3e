// Package crilog reads the log files that a container runtime writes under the CRI contract: one record a line, as
// "2026-01-02T15:04:05.123456789Z stdout F text".
//
// Parse reads one record; Copy gives a file's text as `kubectl logs` shows it, with the kubelet's meaning of tail,
// since, limit, timestamps and follow; Printer does the same for records from elsewhere, so that the log store's
// answer has the same bytes. It does not rotate or remove files and knows nothing of instances.
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"cumulet.io/logs"
)

// TimeFormat is how a record's time is shown: RFC 3339, always nine digits, UTC.
const TimeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// MaxRecord is the longest record that is read, in bytes; the rest of a longer line is passed over. containerd cuts at
// 16 KiB by default.
const MaxRecord = 1 << 20

// ErrMalformed is wrapped by every error of Parse.
var ErrMalformed = errors.New("not a CRI log record")

// Entry is one parsed record.
type Entry struct {
	// Time is when the runtime read the line, UTC.
	Time time.Time
	// Stream is stdout or stderr.
	Stream logs.Stream
	// Partial marks a piece whose rest follows.
	Partial bool
	// Text is what the container wrote, without the newline. It aliases Parse's argument.
	Text []byte
}

// Parse reads one record; a trailing newline is allowed. Errors wrap ErrMalformed and do not repeat the text.
func Parse(line []byte) (Entry, error) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Entry{}, fmt.Errorf("%w: no time", ErrMalformed)
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Entry{}, fmt.Errorf("%w: the time is not RFC 3339", ErrMalformed)
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || string(stream) != string(logs.Stdout) && string(stream) != string(logs.Stderr) {
		return Entry{}, fmt.Errorf("%w: the stream is not stdout or stderr", ErrMalformed)
	}
	tags, text, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return Entry{}, fmt.Errorf("%w: no tag", ErrMalformed)
	}
	partial, err := PartialTag(string(tags))
	if err != nil {
		return Entry{}, err
	}
	return Entry{Time: t.UTC(), Stream: logs.Stream(stream), Partial: partial, Text: text}, nil
}

// PartialTag tells whether a record's tags ("F", "P", or a colon-separated list that begins with one of them; the CRI
// reserves further ones) mark a piece of a line.
func PartialTag(tags string) (bool, error) {
	if len(tags) > 1 && tags[1] != ':' || tags == "" || tags[0] != 'F' && tags[0] != 'P' {
		return false, fmt.Errorf("%w: the tag is not F or P", ErrMalformed)
	}
	return tags[0] == 'P', nil
}

// AppendRecord appends the record of e with its newline to b: what a runtime would have written.
func AppendRecord(b []byte, e Entry) []byte {
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, ' ')
	b = append(b, e.Stream...)
	if e.Partial {
		b = append(b, " P "...)
	} else {
		b = append(b, " F "...)
	}
	b = append(b, e.Text...)
	return append(b, '\n')
}

// ErrLimit is returned by Printer.Print when LimitBytes are written: the end, not a failure.
var ErrLimit = errors.New("the byte limit is reached")

// Printer writes records as `kubectl logs` shows them. Not safe for concurrent use.
type Printer struct {
	w          io.Writer
	since      time.Time
	timestamps bool
	remain     int64 // below 0: no limit
	middle     bool  // the last record was a piece: no time goes before the next
	buf        []byte
}

// NewPrinter makes a printer that leaves out what is older than since (when not zero), stops after limitBytes (when
// above 0) and puts the time before each line (when timestamps).
func NewPrinter(w io.Writer, since time.Time, limitBytes int64, timestamps bool) *Printer {
	p := &Printer{w: w, since: since, timestamps: timestamps, remain: -1}
	if limitBytes > 0 {
		p.remain = limitBytes
	}
	return p
}

// Print writes one record: its text, with a newline unless it is a piece. As in the kubelet, the time goes once before
// a line that comes in pieces, and since is asked of each record.
func (p *Printer) Print(e Entry) error {
	first := !p.middle
	p.middle = e.Partial && len(e.Text) > 0
	if e.Time.Before(p.since) {
		return nil
	}
	p.buf = p.buf[:0]
	if p.timestamps && first {
		p.buf = e.Time.UTC().AppendFormat(p.buf, TimeFormat)
		p.buf = append(p.buf, ' ')
	}
	p.buf = append(p.buf, e.Text...)
	if !e.Partial {
		p.buf = append(p.buf, '\n')
	}
	out := p.buf
	if p.remain >= 0 && int64(len(out)) > p.remain {
		out = out[:p.remain]
	}
	n, err := p.w.Write(out)
	if p.remain >= 0 {
		p.remain -= int64(n)
	}
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if p.remain == 0 {
		return ErrLimit
	}
	return nil
}
