package sharing

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

type stream struct {
	io.Reader
	sent bytes.Buffer
}

func (s *stream) Write(b []byte) (int, error) { return s.sent.Write(b) }

func TestCall(t *testing.T) {
	s := &stream{Reader: strings.NewReader(`{"root":"c/root","mounts":{"/data":"c/1"}}`)}
	r, err := Call(s, Request{Container: "c"})
	if err != nil || r.Root != "c/root" || r.Mounts["/data"] != "c/1" || s.sent.String() != "{\"container\":\"c\"}\n" {
		t.Errorf("%+v, %v; sent %q", r, err, s.sent.String())
	}
	for answer, want := range map[string]string{
		`{"error":"no container c"}`: "no container c", ``: "EOF", `{"new":1}`: "unknown field",
		`{"root":"` + strings.Repeat("x", MaxMessage) + `"}`: "unexpected EOF",
	} {
		if _, err := Call(&stream{Reader: strings.NewReader(answer)}, Request{Container: "c"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("answer %.20q: %v, want %q", answer, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"container":"c","release":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		if err := Decode(bytes.NewReader(b), &r); err != nil {
			return
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	})
}
