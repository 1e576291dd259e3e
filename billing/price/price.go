// Package price is the price book: append-only versions of per-second prices by sandbox class, region, phase and
// dimension.
//
// It reads and checks a book and finds prices; billing/ledger keeps which versions were ever in force.
package price

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"time"

	"cumulet.io/billing"
	"cumulet.io/billing/money"
)

// ErrNoPrice tells that no version of the book is in force at the time.
var ErrNoPrice = errors.New("the price book has no price for the time")

// Any matches every sandbox class or region.
const Any = "*"

// Dimension is what a price is for.
type Dimension string

// The dimensions.
const (
	VCPUSecond Dimension = "vCPU-second"
	GiBSecond  Dimension = "GiB-second"
)

// Book is a checked price book. It is immutable and safe for concurrent use.
type Book struct {
	Name     string         `json:"name"`
	Currency money.Currency `json:"currency"`
	// Versions are in order of EffectiveFrom; one ends where the next begins.
	Versions []Version `json:"versions"`
}

// Version is a set of prices in force from an instant on, a full hour UTC.
type Version struct {
	ID            string    `json:"id"`
	EffectiveFrom time.Time `json:"effectiveFrom"`
	Prices        []Price   `json:"prices"`
}

// Price is what an instance of a sandbox class in a region costs. Class and Region may be Any; the price that names
// the class beats the one that names the region only, which beats the one for all.
type Price struct {
	SandboxClass string `json:"sandboxClass"`
	Region       string `json:"region"`
	Startup      Rates  `json:"startup"`
	Running      Rates  `json:"running"`
}

// Rates are the prices of one phase, by dimension.
type Rates struct {
	VCPUSecond money.Rate `json:"vCPUSecond"`
	GiBSecond  money.Rate `json:"gibSecond"`
}

// At gives the version in force at t; ErrNoPrice before the first.
func (b *Book) At(t time.Time) (*Version, error) {
	i := sort.Search(len(b.Versions), func(i int) bool { return b.Versions[i].EffectiveFrom.After(t) })
	if i == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoPrice, t.UTC().Format(time.RFC3339))
	}
	return &b.Versions[i-1], nil
}

// Rates finds the price of a sandbox class in a region in a phase. A checked version has one for all.
func (v *Version) Rates(class, region string, phase billing.Phase) (Rates, error) {
	var best *Price
	rank := -1
	for i := range v.Prices {
		p := &v.Prices[i]
		r := 0
		switch {
		case p.SandboxClass != Any && p.SandboxClass != class, p.Region != Any && p.Region != region:
			continue
		}
		if p.SandboxClass != Any {
			r += 2
		}
		if p.Region != Any {
			r++
		}
		if r > rank {
			best, rank = p, r
		}
	}
	if best == nil {
		return Rates{}, fmt.Errorf("%w: version %s, %s in %s", ErrNoPrice, v.ID, class, region)
	}
	if phase == billing.PhaseStartup {
		return best.Startup, nil
	}
	return best.Running, nil
}

// Digest names a version's whole content: a version once in force keeps it.
func (v *Version) Digest(c money.Currency) (string, error) {
	prices := append([]Price(nil), v.Prices...)
	sort.Slice(prices, func(i, j int) bool {
		if prices[i].SandboxClass != prices[j].SandboxClass {
			return prices[i].SandboxClass < prices[j].SandboxClass
		}
		return prices[i].Region < prices[j].Region
	})
	b, err := json.Marshal(struct {
		Currency money.Currency
		Version  Version
	}{c, Version{v.ID, v.EffectiveFrom.UTC(), prices}})
	if err != nil {
		return "", fmt.Errorf("digest price version %s: %w", v.ID, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
