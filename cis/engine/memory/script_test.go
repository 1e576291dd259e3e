package memory

import (
	"strings"
	"testing"
	"time"

	"cumulet.io/cis"
)

// runScript runs a script in a container of its own to where it waits or ends.
func runScript(script string) (*process, string) {
	i := newInstance(newWorld(Config{}), &cis.Instance{ID: "i", Spec: cis.Spec{Containers: []cis.Container{{Name: "c"}}}})
	c := i.mains[0]
	c.files, c.env, c.log = map[string]string{}, map[string]string{"A": "x y", "B_1": "b"}, &logBuffer{}
	p, err := c.newProcess([]string{"sh", "-c", script})
	if err != nil {
		return nil, ""
	}
	var out strings.Builder
	p.stdout = func(s string) { out.WriteString(s) }
	p.stderr = func(s string) { out.WriteString("!" + s) }
	i.mu.Lock()
	defer i.mu.Unlock()
	p.run()
	if p.timer != nil {
		p.timer.Stop()
	}
	return p, out.String()
}

func TestScript(t *testing.T) {
	for script, want := range map[string]string{
		`echo a  b`:                                                "a b\n",
		`echo 'a  b' "c  d"`:                                       "a  b c  d\n",
		`echo "$A" '$A' $B_1-${B_1}é $none.`:                       "x y $A b-bé .\n",
		`echo "a\"b" c\ d`:                                         "a\"b c d\n",
		"echo a\necho b; echo c":                                   "a\nb\nc\n",
		`true && echo a || echo b`:                                 "a\n",
		`false && echo a || echo b`:                                "b\n",
		`false || false || echo b; echo $?`:                        "b\n0\n",
		`echo a > /f; echo b >> /f; cat /f`:                        "a\nb\n",
		`echo a > f; echo b > f; cat /f`:                           "b\n",
		`echo a >&2; nope 2>/dev/null; echo $?`:                    "!a\n127\n",
		`cat /none; echo $?`:                                       "!cat: /none: No such file or directory\n1\n",
		`touch /f; test -f /f && rm /f && test -f /f || echo gone`: "gone\n",
		`exit 3; echo never`:                                       "",
		`echo "open`:                                               "!syntax error: unterminated quoted string\n",
		`echo a | cat`:                                             "!syntax error: \"|\" is not supported by the in-memory engine\n",
		`trap 'echo t' TERM`:                                       "",
		`env`:                                                      "A=x y\nB_1=b\n",
		`pwd; id -u; test -t 1 || echo no terminal`:                "/\n0\nno terminal\n",
	} {
		if _, got := runScript(script); got != want {
			t.Errorf("%s\ngot  %q\nwant %q", script, got, want)
		}
	}
	for script, code := range map[string]int{`exit 3`: 3, `false`: 1, `nope`: 127, `exit 256`: 0, `echo "`: 2, `tail /dev/zero`: 137, ``: 0} {
		if p, _ := runScript(script); !p.done || p.code != code {
			t.Errorf("%q: done %v, code %d, want %d", script, p.done, p.code, code)
		}
	}
	if p, _ := runScript("sleep 3600 & wait"); p.done || !p.waiting {
		t.Error("wait does not wait")
	}
}

func FuzzScript(f *testing.F) {
	for _, s := range []string{`echo "a" > /f; cat /f && exit 3 || sleep 1 & wait`, `trap 'x' TERM; nc -l -p 7 -e cat`, "2>", "${", `"\`, "a>&", ">&&", "exec"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script string) {
		start := time.Now()
		if p, _ := runScript(script); p != nil {
			p.c.inst.mu.Lock()
			p.term()
			p.kill()
			p.c.inst.mu.Unlock()
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Fatalf("took %v", d)
		}
	})
}
