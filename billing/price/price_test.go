package price_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/price"
)

func TestExample(t *testing.T) {
	b, err := price.Example()
	if err != nil {
		t.Fatal(err)
	}
	v, err := b.At(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		class string
		phase billing.Phase
		want  string
	}{{"kata", billing.PhaseRunning, "0.000011244"}, {"runc", billing.PhaseRunning, "0.000008"}, {"kata", billing.PhaseStartup, "0"}} {
		r, err := v.Rates(c.class, "anywhere", c.phase)
		if err != nil || r.VCPUSecond.String() != c.want {
			t.Errorf("%s %s: %v %s, want %s", c.class, c.phase, err, r.VCPUSecond, c.want)
		}
	}
	if _, err := b.At(time.Date(2025, 12, 31, 23, 59, 59, 0, time.UTC)); !errors.Is(err, price.ErrNoPrice) {
		t.Errorf("before the first version: %v", err)
	}
}

func TestMostSpecific(t *testing.T) {
	rates := ", startup: {vCPUSecond: 0, gibSecond: 0}, running: {gibSecond: 0, vCPUSecond: "
	b, err := price.Parse([]byte("name: n\ncurrency: EUR\nversions: [{id: v, effectiveFrom: 2026-01-01T00:00:00+02:00, prices: [" +
		`{sandboxClass: "*", region: "*"` + rates + `1}}, {sandboxClass: "*", region: eu` + rates + `2}}, ` +
		`{sandboxClass: kata, region: "*"` + rates + `3}}, {sandboxClass: kata, region: eu` + rates + "4}}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][3]string{{"runc", "us", "1"}, {"runc", "eu", "2"}, {"kata", "us", "3"}, {"kata", "eu", "4"}} {
		r, err := b.Versions[0].Rates(c[0], c[1], billing.PhaseRunning)
		if err != nil || r.VCPUSecond.String() != c[2] {
			t.Errorf("%s in %s: %v %s, want %s", c[0], c[1], err, r.VCPUSecond, c[2])
		}
	}
}

// TestBad: each testdata/bad/*.yaml begins with a comment that is what the error must hold.
func TestBad(t *testing.T) {
	paths, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d files: %v", len(paths), err)
	}
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := strings.Cut(strings.TrimPrefix(string(text), "# "), "\n")
		if _, err := price.Parse(text); !errors.Is(err, price.ErrBadBook) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", p, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range append(paths, "example.yaml") {
		text, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := price.Parse(text)
		if err != nil {
			if !errors.Is(err, price.ErrBadBook) {
				t.Fatalf("an error of no class: %v", err)
			}
			return
		}
		for i := range b.Versions {
			if _, err := b.Versions[i].Rates("x", "y", billing.PhaseRunning); err != nil {
				t.Fatalf("a checked book lacks a price: %v", err)
			}
		}
	})
}
