package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// line is a document of exactly the shape that logs/collect makes of a container's record; it is kept in columns.
// Any other document is kept as it came. Both answer the same queries.
type line struct {
	src    source
	time   int64 // cri.time, ns since 1970
	offset int64
	flags  int64
	text   string
}

// source is what all lines of one file have in common.
type source struct {
	org, instance, container string
	attempt                  int64
	path                     string
}

// Bits of line.flags.
const (
	flagStderr  = 1
	flagPartial = 2
)

// Bits that tell which members a document had.
const (
	hasStamp = 1 << iota
	hasOrg
	hasInstance
	hasContainer
	hasAttempt
	hasTime
	hasStream
	hasTag
	hasOffset
	hasPath
	hasMessage
	hasAll = 1<<iota - 1
)

const stampFormat = "2006-01-02T15:04:05.000Z"

// parseLine reads a document of the line shape; ok is false for any other, which may still be good JSON.
func parseLine(doc []byte) (l line, ok bool) {
	p := scanner{b: doc}
	var stamp, when string
	seen := 0
	mark := func(bit int) bool {
		fresh := seen&bit == 0
		seen |= bit
		return fresh
	}
	str := func(bit int, to *string) bool {
		var good bool
		*to, good = p.str()
		return good && mark(bit)
	}
	num := func(bit int, to *int64) bool {
		var good bool
		*to, good = p.integer()
		return good && mark(bit)
	}
	done := p.object(func(key string) bool {
		switch key {
		case "@timestamp":
			return str(hasStamp, &stamp)
		case "org":
			return str(hasOrg, &l.src.org)
		case "instance":
			return str(hasInstance, &l.src.instance)
		case "container":
			return str(hasContainer, &l.src.container)
		case "attempt":
			return num(hasAttempt, &l.src.attempt)
		case "message":
			return str(hasMessage, &l.text)
		case "cri":
			return p.object(func(key string) bool {
				var v string
				switch key {
				case "time":
					return str(hasTime, &when)
				case "stream":
					good := str(hasStream, &v)
					if v == "stderr" {
						l.flags |= flagStderr
					}
					return good && (v == "stdout" || v == "stderr")
				case "tag":
					good := str(hasTag, &v)
					if v == "P" {
						l.flags |= flagPartial
					}
					return good && (v == "F" || v == "P")
				}
				return false
			})
		case "log":
			return p.object(func(key string) bool {
				switch key {
				case "offset":
					return num(hasOffset, &l.offset)
				case "file":
					return p.object(func(key string) bool { return key == "path" && str(hasPath, &l.src.path) })
				}
				return false
			})
		}
		return false
	})
	if !done || !p.end() || seen != hasAll {
		return line{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, when)
	if err != nil {
		return line{}, false
	}
	t = t.UTC()
	l.time = t.UnixNano()
	// Only what comes back the same is kept in columns.
	if !time.Unix(0, l.time).Equal(t) || t.Format(time.RFC3339Nano) != when || t.Format(stampFormat) != stamp || l.time < 0 {
		return line{}, false
	}
	return l, true
}

// appendDoc appends the document again: the same members with the same values.
func (l *line) appendDoc(b []byte) []byte {
	t := time.Unix(0, l.time).UTC()
	b = append(b, `{"@timestamp":"`...)
	b = t.AppendFormat(b, stampFormat)
	b = append(b, `","org":`...)
	b = appendString(b, l.src.org)
	b = append(b, `,"instance":`...)
	b = appendString(b, l.src.instance)
	b = append(b, `,"container":`...)
	b = appendString(b, l.src.container)
	b = append(b, `,"attempt":`...)
	b = strconv.AppendInt(b, l.src.attempt, 10)
	b = append(b, `,"cri":{"time":"`...)
	b = t.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","stream":"`...)
	b = append(b, streamOf(l.flags)...)
	b = append(b, `","tag":"`...)
	b = append(b, tagOf(l.flags)...)
	b = append(b, `"},"log":{"offset":`...)
	b = strconv.AppendInt(b, l.offset, 10)
	b = append(b, `,"file":{"path":`...)
	b = appendString(b, l.src.path)
	b = append(b, `}},"message":`...)
	b = appendString(b, l.text)
	return append(b, '}')
}

func streamOf(flags int64) string {
	if flags&flagStderr != 0 {
		return "stderr"
	}
	return "stdout"
}

func tagOf(flags int64) string {
	if flags&flagPartial != 0 {
		return "P"
	}
	return "F"
}

// LineID is Filebeat's fingerprint (sha256) over log.file.path and log.offset: with it as _id, the id need not be kept.
func LineID(path string, offset int64) string {
	b := make([]byte, 0, 128)
	b = append(b, "|log.file.path|"...)
	b = append(b, path...)
	b = append(b, "|log.offset|"...)
	b = strconv.AppendInt(b, offset, 10)
	b = append(b, '|')
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// appendString appends s as JSON.
func appendString(b []byte, s string) []byte {
	plain := utf8.ValidString(s)
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] != '"' && s[i] != '\\'
	}
	if plain {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	j, _ := json.Marshal(s) //nolint:errcheck // a string always has JSON
	return append(b, j...)
}

// scanner reads the small part of JSON that a line is made of. Every method returns false for anything else.
type scanner struct {
	b []byte
	i int
}

func (p *scanner) space() {
	for p.i < len(p.b) && (p.b[p.i] == ' ' || p.b[p.i] == '\t' || p.b[p.i] == '\n' || p.b[p.i] == '\r') {
		p.i++
	}
}

func (p *scanner) byte(c byte) bool {
	p.space()
	if p.i < len(p.b) && p.b[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *scanner) end() bool { p.space(); return p.i == len(p.b) }

// object calls member for each key, which reads the value.
func (p *scanner) object(member func(key string) bool) bool {
	if !p.byte('{') {
		return false
	}
	if p.byte('}') {
		return true
	}
	for {
		key, ok := p.str()
		if !ok || !p.byte(':') || !member(key) {
			return false
		}
		if p.byte('}') {
			return true
		}
		if !p.byte(',') {
			return false
		}
	}
}

func (p *scanner) str() (string, bool) {
	if !p.byte('"') {
		return "", false
	}
	begin, plain := p.i, true
	for ; p.i < len(p.b); p.i++ {
		switch c := p.b[p.i]; {
		case c == '"':
			raw := p.b[begin:p.i]
			p.i++
			if plain && utf8.Valid(raw) {
				return string(raw), true
			}
			var s string
			err := json.Unmarshal(p.b[begin-1:p.i], &s)
			return s, err == nil
		case c == '\\':
			plain = false
			p.i++
		case c < ' ':
			return "", false
		}
	}
	return "", false
}

func (p *scanner) integer() (int64, bool) {
	p.space()
	begin := p.i
	for p.i < len(p.b) && (p.b[p.i] >= '0' && p.b[p.i] <= '9' || p.b[p.i] == '-') {
		p.i++
	}
	digits := p.b[begin:p.i]
	if len(digits) > 1 && digits[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseInt(string(digits), 10, 64)
	return n, err == nil && n >= 0
}
