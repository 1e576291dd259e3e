package cis

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"cumulet.io/internal/problem"
)

// base is a valid request that the cases change in one place.
const base = `{"key": "k-1", "spec": {
	"name": "web",
	"initContainers": [
		{"name": "prepare", "image": "busybox"},
		{"name": "helper", "image": "busybox:1.36", "restartPolicy": "Always"}],
	"containers": [
		{"name": "app", "image": "example.org/app:v1", "ports": [{"name": "http", "containerPort": 80}],
		 "mounts": [{"volume": "scratch", "path": "/scratch"}, {"volume": "config", "path": "/config", "readOnly": true}]},
		{"name": "logger", "image": "busybox"}],
	"volumes": [
		{"name": "scratch", "emptyDir": {}},
		{"name": "config", "files": {"files": [{"path": "x", "data": "aGk="}, {"path": "a/b", "data": ""}]}}]}}`

// set puts value at a path as "spec.containers[0].image" into doc.
func set(t *testing.T, doc map[string]any, path string, value any) {
	t.Helper()
	var at any = doc
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
	for i, p := range parts {
		last := i == len(parts)-1
		switch c := at.(type) {
		case map[string]any:
			if last {
				c[p] = value
			}
			at = c[p]
		case []any:
			n, err := strconv.Atoi(p)
			if err != nil || n >= len(c) {
				t.Fatalf("no %q in %s", p, path)
			}
			if last {
				c[n] = value
			}
			at = c[n]
		default:
			t.Fatalf("no %q in %s", p, path)
		}
	}
}

func check(body string) error {
	req, err := DecodeCreate(strings.NewReader(body))
	if err != nil {
		return err
	}
	return ValidateCreate(req)
}

func TestCreateCases(t *testing.T) {
	if err := check(base); err != nil {
		t.Fatalf("the base is not valid: %v", err)
	}
	f, err := os.Open("testdata/create.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		change, want, ok := strings.Cut(line, " => ")
		path, text, ok2 := strings.Cut(change, " = ")
		if !ok || !ok2 {
			t.Fatalf("line %d is not a case: %s", n, line)
		}
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			var doc map[string]any
			var value any
			if err := errors.Join(json.Unmarshal([]byte(base), &doc), json.Unmarshal([]byte(text), &value)); err != nil {
				t.Fatal(err)
			}
			set(t, doc, strings.TrimSpace(path), value)
			body, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			err = check(string(body))
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("took %v", d)
			}
			if want == "ok" {
				if err != nil {
					t.Fatalf("%s\nrefused: %v", line, err)
				}
				return
			}
			if !errors.Is(err, problem.ErrInvalid) {
				t.Fatalf("%s\ngot %v", line, err)
			}
			if strings.Contains(err.Error(), "topsecret") {
				t.Fatalf("the error repeats a secret: %v", err)
			}
			var p *problem.Error
			errors.As(err, &p)
			if field, rule, ok := strings.Cut(want, ": "); ok {
				if p.Field != field || !strings.Contains(p.Rule, rule) {
					t.Fatalf("%s\ngot field %q rule %q value %q", line, p.Field, p.Rule, p.Value)
				}
			} else if !strings.Contains(err.Error(), want) {
				t.Fatalf("%s\ngot %v", line, err)
			}
		})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestDecodeCreate(t *testing.T) {
	for _, tt := range []struct {
		name, body, want string
		class            error
	}{
		{"empty", "", "not JSON", problem.ErrInvalid},
		{"null", "null", "object", problem.ErrInvalid},
		{"array", "[]", "object", problem.ErrInvalid},
		{"cut", `{"key": "a`, "not JSON", problem.ErrInvalid},
		{"trailing", `{"key": "a"} {}`, "not JSON", problem.ErrInvalid},
		{"twice", `{"key": "a", "key": "b"}`, "key", problem.ErrInvalid},
		{"endless quantity behind a repeated key", `{"spec":{"containers":[{"resources":{"limits":{"cpu":"1234567890123456789\u0065999999999","cpu":"1"}}}]}}`,
			"spec.containers[0].resources.limits.cpu", problem.ErrInvalid},
		{"too large", `{"key": "` + strings.Repeat("a", MaxCreateBytes) + `"}`, "larger than", problem.ErrTooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeCreate(strings.NewReader(tt.body))
			if !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestManyErrorsAreBounded(t *testing.T) {
	req := &CreateRequest{Key: "k", Spec: Spec{Name: "n"}}
	for range 5000 {
		req.Spec.Containers = append(req.Spec.Containers, Container{Env: make([]EnvVar, 100)})
	}
	err := ValidateCreate(req)
	var p *problem.Error
	if !errors.As(err, &p) || p.Field != "spec.containers" || p.Rule != "must have at most 50 containers" {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(p.Detail, "more errors, in spec.containers[0].name") || len(p.Detail) > 2000 {
		t.Fatalf("detail %q", p.Detail)
	}
}

func TestLargeInputs(t *testing.T) {
	req := func() *CreateRequest {
		return &CreateRequest{Key: "k", Spec: Spec{Name: "n", Containers: []Container{{Name: "c", Image: "busybox"}}}}
	}
	files := req()
	files.Spec.Volumes = []Volume{{Name: "v", Files: &FilesVolume{Files: []File{{Path: "a", Data: make([]byte, MaxFilesBytes+1)}}}}}
	env := req()
	for range 10 {
		env.Spec.Containers[0].Env = append(env.Spec.Containers[0].Env, EnvVar{Name: "A", Value: strings.Repeat("x", MaxStringBytes-2)})
	}
	long := req()
	long.Spec.Containers[0].Env = []EnvVar{{Name: "A", Value: strings.Repeat("x", MaxStringBytes)}}
	for field, r := range map[string]*CreateRequest{
		"spec.volumes[0].files.files": files, "spec.containers[0].env": env, "spec.containers[0].env[0].value": long,
	} {
		var p *problem.Error
		if err := ValidateCreate(r); !errors.As(err, &p) || p.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestValidateOrg(t *testing.T) {
	for org, ok := range map[string]bool{"acme": true, "a-1": true, "": false, "A": false, "a/b": false, "..": false, strings.Repeat("a", 64): false} {
		if err := ValidateOrg(org); (err == nil) != ok {
			t.Errorf("%q: %v", org, err)
		}
	}
}

func TestNewID(t *testing.T) {
	now := time.Now()
	last := ""
	for i := range 1000 {
		id := NewID(now.Add(time.Duration(i) * time.Millisecond))
		if !ValidID(id) || id <= last {
			t.Fatalf("%q after %q", id, last)
		}
		last = id
	}
	if a, b := NewID(now), NewID(now); a == b {
		t.Fatal("the same id twice")
	}
}

func FuzzDecodeCreate(f *testing.F) {
	f.Add([]byte(base))
	f.Add([]byte(`{"key":1}`))
	f.Add([]byte(`{"spec":{"containers":[{"resources":{"requests":{"cpu":"1234567890123456789\u0065999999999"}}}]}}`))
	f.Add([]byte(`{"spec":{"containers":[{"resources":{"requests":{"cpu":"x"}}}]}}`))
	f.Add([]byte(`{"spec":{"containers":[{"livenessProbe":{"httpGet":{"port":{}}}}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeCreate(strings.NewReader(string(body)))
		if err != nil {
			if problem.Of(err).Status >= 500 {
				t.Fatalf("an error of no class: %v", err)
			}
			return
		}
		if err := ValidateCreate(req); err != nil {
			if problem.Of(err).Status != 400 {
				t.Fatalf("an error of no class: %v", err)
			}
			return
		}
		// What is valid stays valid and of one size through defaults, redaction and a round trip.
		d := req.Spec.Defaulted()
		if SizeOf(&d) != SizeOf(&req.Spec) || SizeOf(&d).Class == "" {
			t.Fatalf("size changed: %+v, %+v", SizeOf(&d), SizeOf(&req.Spec))
		}
		if err := ValidateCreate(&CreateRequest{Key: req.Key, Spec: d.Redacted()}); err != nil {
			t.Fatalf("defaulted: %v", err)
		}
		again, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(string(again)); err != nil {
			t.Fatalf("round trip: %v", err)
		}
	})
}
