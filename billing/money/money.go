// Package money holds exact decimal amounts, rates and quantities with a currency; nothing near money is a float.
//
// It knows no prices and no exchange rates: amounts of two currencies never meet.
package money

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/shopspring/decimal"
)

// Errors; test with errors.Is.
var (
	ErrCurrency = errors.New("amounts of different currencies cannot be added")
	ErrSyntax   = errors.New("not a plain decimal number")
	ErrUnknown  = errors.New("not a currency code known here")
)

// plain bounds what is read: no exponents, 18 digits on either side of the point.
var plain = regexp.MustCompile(`^-?[0-9]{1,18}(\.[0-9]{1,18})?$`)

// Currency is an ISO 4217 code.
type Currency string

// minorUnits gives the decimal places of the currencies that can be billed in (ISO 4217, minor unit).
func minorUnits(c Currency) (int32, bool) {
	switch c {
	case "USD", "EUR", "CNY", "GBP", "CHF", "SEK", "NOK", "DKK", "PLN", "CZK", "CAD", "AUD", "NZD", "HKD", "SGD", "TWD",
		"INR", "BRL", "MXN", "ZAR", "TRY", "ILS", "AED", "SAR", "THB", "MYR", "IDR", "PHP", "HUF", "RON":
		return 2, true
	case "JPY", "KRW", "VND", "CLP", "ISK":
		return 0, true
	case "KWD", "BHD", "OMR", "JOD", "TND":
		return 3, true
	}
	return 0, false
}

// ParseCurrency checks a code.
func ParseCurrency(s string) (Currency, error) {
	if _, ok := minorUnits(Currency(s)); !ok {
		return "", fmt.Errorf("%w: %q", ErrUnknown, s)
	}
	return Currency(s), nil
}

func parse(s string) (decimal.Decimal, error) {
	if !plain.MatchString(s) {
		if len(s) > 50 {
			s = s[:50] + "…"
		}
		return decimal.Decimal{}, fmt.Errorf("%w: %q", ErrSyntax, s)
	}
	return decimal.NewFromString(s)
}

// Quantity is an exact number of units: seconds, vCPU-seconds, GiB-seconds. The zero value is 0.
type Quantity struct{ d decimal.Decimal }

// Whole is n units.
func Whole(n int64) Quantity { return Quantity{decimal.NewFromInt(n)} }

// VCPUSeconds is seconds of so many thousandths of a vCPU.
func VCPUSeconds(seconds, milliCPU int64) Quantity {
	return Quantity{decimal.NewFromInt(seconds).Mul(decimal.New(milliCPU, -3))}
}

// GiBSeconds is seconds of so many mebibytes. A mebibyte is 0.0009765625 GiB, a finite decimal, so nothing is rounded.
func GiBSeconds(seconds, mebibytes int64) Quantity {
	return Quantity{decimal.NewFromInt(seconds).Mul(decimal.NewFromInt(mebibytes)).Mul(decimal.New(9765625, -10))}
}

// Add is q + r.
func (q Quantity) Add(r Quantity) Quantity { return Quantity{q.d.Add(r.d)} }

// Equal tells whether both are the same number.
func (q Quantity) Equal(r Quantity) bool { return q.d.Equal(r.d) }

// IsZero tells whether q is 0.
func (q Quantity) IsZero() bool { return q.d.IsZero() }

// String is the exact number without trailing zeros.
func (q Quantity) String() string { return q.d.String() }

// MarshalJSON gives a string, because a JSON number is a float to most readers.
func (q Quantity) MarshalJSON() ([]byte, error) { return json.Marshal(q.d.String()) }

// UnmarshalJSON reads the string form.
func (q *Quantity) UnmarshalJSON(b []byte) error {
	d, err := unmarshal(b)
	q.d = d
	return err
}

func unmarshal(b []byte) (decimal.Decimal, error) {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return decimal.Decimal{}, fmt.Errorf("%w: it must be a JSON string", ErrSyntax)
	}
	if len(s) > 100 || !exact.MatchString(s) {
		return decimal.Decimal{}, fmt.Errorf("%w: %.50q", ErrSyntax, s)
	}
	return decimal.NewFromString(s)
}

// exact is what this package itself writes: products have more digits than what people may write.
var exact = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)

// Rate is a price of one unit, not negative. The zero value is free in no currency.
type Rate struct {
	d decimal.Decimal
	c Currency
}

// ParseRate reads a plain decimal of at most 18 digits on either side of the point.
func ParseRate(s string, c Currency) (Rate, error) {
	d, err := parse(s)
	if err != nil {
		return Rate{}, err
	}
	if d.IsNegative() {
		return Rate{}, fmt.Errorf("%w: a price is not negative: %q", ErrSyntax, s)
	}
	return Rate{d, c}, nil
}

// Times is the exact price of q units.
func (r Rate) Times(q Quantity) Amount { return Amount{r.d.Mul(q.d), r.c} }

// Currency is the rate's.
func (r Rate) Currency() Currency { return r.c }

// String is the number without the currency.
func (r Rate) String() string { return r.d.String() }

// MarshalJSON gives the number as a string.
func (r Rate) MarshalJSON() ([]byte, error) { return json.Marshal(r.d.String()) }

// Amount is an exact amount of money. The zero value is 0 in no currency, which adds to any.
type Amount struct {
	d decimal.Decimal
	c Currency
}

// Zero is nothing of a currency.
func Zero(c Currency) Amount { return Amount{c: c} }

// ParseAmount reads a plain decimal.
func ParseAmount(s string, c Currency) (Amount, error) {
	d, err := parse(s)
	return Amount{d, c}, err
}

// Add is a + b; ErrCurrency when the currencies differ.
func (a Amount) Add(b Amount) (Amount, error) {
	switch {
	case a.c == "":
		return Amount{a.d.Add(b.d), b.c}, nil
	case b.c != "" && a.c != b.c:
		return Amount{}, fmt.Errorf("%w: %s and %s", ErrCurrency, a.c, b.c)
	}
	return Amount{a.d.Add(b.d), a.c}, nil
}

// Sub is a - b; ErrCurrency when the currencies differ.
func (a Amount) Sub(b Amount) (Amount, error) { return a.Add(b.Neg()) }

// Neg is -a.
func (a Amount) Neg() Amount { return Amount{a.d.Neg(), a.c} }

// Round rounds to the currency's minor unit, half away from zero.
func (a Amount) Round() Amount {
	places, ok := minorUnits(a.c)
	if !ok {
		places = 2
	}
	return Amount{a.d.Round(places), a.c}
}

// Equal tells whether both are the same amount of the same currency.
func (a Amount) Equal(b Amount) bool { return a.c == b.c && a.d.Equal(b.d) }

// IsZero tells whether a is 0.
func (a Amount) IsZero() bool { return a.d.IsZero() }

// Currency is the amount's.
func (a Amount) Currency() Currency { return a.c }

// String is the exact number without the currency.
func (a Amount) String() string { return a.d.String() }

// Fixed is a rounded amount with all its minor units, as "12.30".
func (a Amount) Fixed() string {
	places, ok := minorUnits(a.c)
	if !ok {
		places = 2
	}
	return a.d.StringFixed(places)
}

// MarshalJSON gives the number as a string; the currency stands beside it in the document.
func (a Amount) MarshalJSON() ([]byte, error) { return json.Marshal(a.d.String()) }

// UnmarshalJSON reads the number; the currency is set with In.
func (a *Amount) UnmarshalJSON(b []byte) error {
	d, err := unmarshal(b)
	a.d = d
	return err
}

// UnmarshalJSON reads the number; the currency is set with In.
func (r *Rate) UnmarshalJSON(b []byte) error {
	d, err := unmarshal(b)
	r.d = d
	return err
}

// In is the same number in a currency.
func (a Amount) In(c Currency) Amount { return Amount{a.d, c} }

// In is the same number in a currency.
func (r Rate) In(c Currency) Rate { return Rate{r.d, c} }
