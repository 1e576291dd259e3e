package price

import (
	_ "embed" // for the example
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"cumulet.io/billing"
	"cumulet.io/billing/money"
	"cumulet.io/internal/strictyaml"
)

// Bounds of a book.
const (
	maxVersions = 1000
	maxPrices   = 1000
)

// ErrBadBook is wrapped by every error about a book's text.
var ErrBadBook = errors.New("the price book is not valid")

//go:embed example.yaml
var example []byte

// Example is the book that the platform uses when none is configured: prices in line with public list prices, to be
// replaced by the operator's own.
func Example() (*Book, error) { return Parse(example) }

// Load reads and checks a book from a file.
func Load(path string) (*Book, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load price book: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	text, err := io.ReadAll(io.LimitReader(f, strictyaml.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("load price book %s: %w", path, err)
	}
	b, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("load price book %s: %w", path, err)
	}
	return b, nil
}

// Parse reads and checks a book: one YAML document, no unknown or repeated keys, no anchors. Errors wrap ErrBadBook
// and name the line; an unknown key also the nearest known one.
func Parse(text []byte) (*Book, error) {
	root, err := strictyaml.Document(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadBook, err)
	}
	if root == nil {
		return nil, fmt.Errorf("%w: it is empty", ErrBadBook)
	}
	return parseBook(root)
}

func fault(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%w: line %d, column %d: %s", ErrBadBook, n.Line, n.Column, fmt.Sprintf(format, args...))
}

// fields gives the values of a mapping; every key must be known and all of them must be there.
func fields(n *yaml.Node, what string, known ...string) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fault(n, "%s must be a mapping with %s", what, strings.Join(known, ", "))
	}
	m := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		found := false
		for _, name := range known {
			found = found || name == k.Value
		}
		if !found || k.Kind != yaml.ScalarNode {
			return nil, fault(k, "unknown key %.80q in %s%s", k.Value, what, strictyaml.Hint(k.Value, known))
		}
		if m[k.Value] != nil {
			return nil, fault(k, "%q is given twice in %s", k.Value, what)
		}
		m[k.Value] = n.Content[i+1]
	}
	for _, name := range known {
		if m[name] == nil {
			return nil, fault(n, "%s has no %q", what, name)
		}
	}
	return m, nil
}

func scalar(n *yaml.Node, what string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Value == "" || n.Tag == "!!null" {
		return "", fault(n, "%s must be a value", what)
	}
	return n.Value, nil
}

func list(n *yaml.Node, what string, most int) ([]*yaml.Node, error) {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 || len(n.Content) > most {
		return nil, fault(n, "%s must be a list of 1 to %d", what, most)
	}
	return n.Content, nil
}

func parseBook(n *yaml.Node) (*Book, error) {
	f, err := fields(n, "the book", "name", "currency", "versions")
	if err != nil {
		return nil, err
	}
	b := &Book{}
	if b.Name, err = scalar(f["name"], "name"); err != nil {
		return nil, err
	}
	if !billing.ValidText(b.Name) {
		return nil, fault(f["name"], "name must be at most 253 printable characters")
	}
	code, err := scalar(f["currency"], "currency")
	if err != nil {
		return nil, err
	}
	if b.Currency, err = money.ParseCurrency(code); err != nil {
		return nil, fault(f["currency"], "%v", err)
	}
	versions, err := list(f["versions"], "versions", maxVersions)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for i, vn := range versions {
		v, err := parseVersion(vn, b.Currency)
		if err != nil {
			return nil, err
		}
		if ids[v.ID] {
			return nil, fault(vn, "version id %q is used twice", v.ID)
		}
		ids[v.ID] = true
		if i > 0 && !v.EffectiveFrom.After(b.Versions[i-1].EffectiveFrom) {
			return nil, fault(vn, "version %q must be effective after version %q: versions are appended", v.ID, b.Versions[i-1].ID)
		}
		b.Versions = append(b.Versions, v)
	}
	return b, nil
}

func parseVersion(n *yaml.Node, c money.Currency) (Version, error) {
	var v Version
	f, err := fields(n, "a version", "id", "effectiveFrom", "prices")
	if err != nil {
		return v, err
	}
	if v.ID, err = scalar(f["id"], "id"); err != nil {
		return v, err
	}
	if !billing.ValidIdentifier(v.ID) {
		return v, fault(f["id"], "id must be letters, digits, '.', '_' and '-'")
	}
	from, err := scalar(f["effectiveFrom"], "effectiveFrom")
	if err != nil {
		return v, err
	}
	at, err := time.Parse(time.RFC3339, from)
	if err != nil || !at.Equal(at.Truncate(time.Hour)) || at.Year() < 2000 || at.Year() > 2199 {
		return v, fault(f["effectiveFrom"], "effectiveFrom must be a full hour, as 2026-01-01T00:00:00Z, not %.80q", from)
	}
	v.EffectiveFrom = at.UTC()
	prices, err := list(f["prices"], "prices", maxPrices)
	if err != nil {
		return v, err
	}
	seen := map[[2]string]bool{}
	for _, pn := range prices {
		p, err := parsePrice(pn, c)
		if err != nil {
			return v, err
		}
		key := [2]string{p.SandboxClass, p.Region}
		if seen[key] {
			return v, fault(pn, "sandboxClass %q in region %q has two prices", p.SandboxClass, p.Region)
		}
		seen[key] = true
		v.Prices = append(v.Prices, p)
	}
	if !seen[[2]string{Any, Any}] {
		return v, fault(f["prices"], `version %q needs a price for sandboxClass "*" in region "*", so that nothing is without one`, v.ID)
	}
	return v, nil
}

func parsePrice(n *yaml.Node, c money.Currency) (Price, error) {
	var p Price
	f, err := fields(n, "a price", "sandboxClass", "region", "startup", "running")
	if err != nil {
		return p, err
	}
	for _, x := range []struct {
		name string
		to   *string
	}{{"sandboxClass", &p.SandboxClass}, {"region", &p.Region}} {
		if *x.to, err = scalar(f[x.name], x.name); err != nil {
			return p, err
		}
		if *x.to != Any && !billing.ValidIdentifier(*x.to) {
			return p, fault(f[x.name], `%s must be a name or "*"`, x.name)
		}
	}
	if p.Startup, err = parseRates(f["startup"], "startup", c); err != nil {
		return p, err
	}
	p.Running, err = parseRates(f["running"], "running", c)
	return p, err
}

func parseRates(n *yaml.Node, phase string, c money.Currency) (Rates, error) {
	var rates Rates
	f, err := fields(n, phase, "vCPUSecond", "gibSecond")
	if err != nil {
		return rates, err
	}
	for _, x := range []struct {
		name string
		to   *money.Rate
	}{{"vCPUSecond", &rates.VCPUSecond}, {"gibSecond", &rates.GiBSecond}} {
		text, err := scalar(f[x.name], x.name)
		if err != nil {
			return rates, err
		}
		if *x.to, err = money.ParseRate(text, c); err != nil {
			return rates, fault(f[x.name], "%s: %v", x.name, err)
		}
	}
	return rates, nil
}
