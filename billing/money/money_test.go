package money_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"cumulet.io/billing/money"
)

func TestRound(t *testing.T) {
	for _, c := range []struct {
		in   string
		cur  money.Currency
		want string
	}{
		{"0.005", "USD", "0.01"}, {"-0.005", "USD", "-0.01"}, {"0.0049999", "USD", "0.00"}, {"1.115", "USD", "1.12"},
		{"-1.115", "USD", "-1.12"}, {"2.5", "JPY", "3"}, {"-2.5", "JPY", "-3"}, {"0.0005", "KWD", "0.001"}, {"7", "EUR", "7.00"},
	} {
		a, err := money.ParseAmount(c.in, c.cur)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Round().Fixed(); got != c.want {
			t.Errorf("%s %s rounds to %s, want %s", c.in, c.cur, got, c.want)
		}
	}
}

func TestExact(t *testing.T) {
	if q := money.GiBSeconds(3, 1); q.String() != "0.0029296875" {
		t.Errorf("3 MiB-seconds are %s", q)
	}
	if q := money.VCPUSeconds(7, 250); q.String() != "1.75" {
		t.Errorf("7 s of a quarter vCPU are %s", q)
	}
	r, err := money.ParseRate("0.000011244", "USD")
	if err != nil {
		t.Fatal(err)
	}
	sum := money.Zero("USD")
	for range 1000 {
		if sum, err = sum.Add(r.Times(money.GiBSeconds(1, 1))); err != nil {
			t.Fatal(err)
		}
	}
	if !sum.Equal(r.Times(money.GiBSeconds(1000, 1))) {
		t.Errorf("a thousand small lines are %s", sum)
	}
}

func TestRefusals(t *testing.T) {
	for _, s := range []string{"", "1e5", ".5", "5.", "+1", " 1", "1,0", "NaN", "1234567890123456789", "0x1", "--1"} {
		if _, err := money.ParseRate(s, "USD"); !errors.Is(err, money.ErrSyntax) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := money.ParseRate("-1", "USD"); err == nil {
		t.Error("a negative price was taken")
	}
	a, b := money.Zero("USD"), money.Zero("EUR")
	if _, err := a.Add(b); !errors.Is(err, money.ErrCurrency) {
		t.Errorf("dollars and euros: %v", err)
	}
	if _, err := money.ParseCurrency("XXX"); !errors.Is(err, money.ErrUnknown) {
		t.Errorf("XXX: %v", err)
	}
}

// TestNoFloats keeps floats out of every file of billing.
func TestNoFloats(t *testing.T) {
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				switch n.Name {
				case "float64", "float32", "NewFromFloat", "InexactFloat64", "Float64", "Seconds", "ParseFloat":
					if n.Name != "Seconds" || n.Obj == nil && isCall(f, n) {
						t.Errorf("%s uses %s", path, n.Name)
					}
				}
			case *ast.BasicLit:
				if n.Kind == token.FLOAT {
					t.Errorf("%s has the float %s", path, n.Value)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || files < 5 {
		t.Fatalf("%d files read: %v", files, err)
	}
}

// isCall tells whether an identifier is called as a method: time.Duration's Seconds gives a float.
func isCall(f *ast.File, id *ast.Ident) bool {
	found := false
	ast.Inspect(f, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			if s, ok := c.Fun.(*ast.SelectorExpr); ok && s.Sel == id && len(c.Args) == 0 {
				found = true
			}
		}
		return !found
	})
	return found
}
