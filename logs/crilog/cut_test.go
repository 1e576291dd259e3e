package crilog_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"cumulet.io/logs"
	"cumulet.io/logs/crilog"
)

// A log whose beginning was cut is read from its first whole record on, whatever is asked of it.
func TestCutFront(t *testing.T) {
	var whole []byte
	var texts []string
	for i := range 20_000 {
		text := fmt.Sprintf("line %d %s", i, strings.Repeat("x", i%200))
		texts = append(texts, text+"\n")
		whole = crilog.AppendRecord(whole, crilog.Entry{Time: at(0).Add(time.Duration(i)), Stream: logs.Stdout, Text: []byte(text)})
	}
	path := write(t, string(whole))
	for _, c := range []struct{ upTo, cut int64 }{{0, 0}, {60_000, 0}, {300_000, 262_144}, {1 << 20, 1 << 20}} {
		before, err := crilog.Used(path)
		if err != nil {
			t.Fatal(err)
		}
		freed, err := crilog.CutFront(path, c.upTo)
		if err != nil {
			t.Fatal(err)
		}
		if c.cut > 0 && freed == 0 {
			t.Skip("the file system of the test's directory gives no space back")
		}
		after, err := crilog.Used(path)
		if err != nil || before-after != freed {
			t.Errorf("%d bytes, then %d, %d given back, %v", before, after, freed, err)
		}
		// Where the first whole record behind the cut begins.
		first := 0
		if c.cut > 0 {
			first = bytes.Count(whole[:c.cut], []byte{'\n'}) + 1
		}
		var out strings.Builder
		if err := crilog.Copy(t.Context(), &out, path, crilog.Options{}); err != nil || out.String() != strings.Join(texts[first:], "") {
			t.Errorf("cut at %d: %d bytes, %v", c.cut, out.Len(), err)
		}
		for _, tail := range []int64{3, 1 << 30} {
			out.Reset()
			want := texts[max(first, len(texts)-int(tail)):]
			if err := crilog.Copy(t.Context(), &out, path, crilog.Options{Tail: &tail}); err != nil || out.String() != strings.Join(want, "") {
				t.Errorf("cut at %d, the last %d: %d bytes, %v", c.cut, tail, out.Len(), err)
			}
		}
	}
	if st, err := os.Stat(path); err != nil || st.Size() != int64(len(whole)) {
		t.Errorf("%v, %v: the size must stay", st, err)
	}
	// Nothing but the rest of a record that was cut.
	path = write(t, string(crilog.AppendRecord(nil, crilog.Entry{Time: at(1), Stream: logs.Stdout, Text: bytes.Repeat([]byte("x"), 100_000)})))
	if _, err := crilog.CutFront(path, 90_000); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := crilog.Copy(t.Context(), &out, path, crilog.Options{}); err != nil || out.Len() != 0 {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
}
