package index

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/internal/sqldb"
)

// Bounds of a repository's rules.
const (
	maxPatterns = 64
	maxPattern  = 128
)

// Rules say which tags of a repository stay where they are and what is kept of it. The zero value: tags may move, and
// everything is kept.
type Rules struct {
	// ImmutableTags are patterns of tags that are neither moved nor deleted once they are there, as "v*". In a pattern
	// * is any text, ? any one character, [a-z] one of a set.
	ImmutableTags []string `json:"immutableTags,omitempty"`
	// Keep applies to the tags that one of its patterns matches: such a tag is deleted unless one of the rules that
	// match it keeps it. A tag that none matches is kept.
	Keep []Keep `json:"keep,omitempty"`
	// UntaggedAfter deletes manifests that no tag, no index and no image refers to, when their last push or pull is
	// longer ago; 0 keeps them.
	UntaggedAfter Age `json:"untaggedAfter,omitzero"`
}

// Keep keeps a tag for any one of its reasons.
type Keep struct {
	// Tags is the pattern of the tags it is for.
	Tags string `json:"tags"`
	// Last keeps this many of the tags it is for, those pushed latest.
	Last int `json:"last,omitempty"`
	// PushedWithin and PulledWithin keep what was pushed or pulled so lately.
	PushedWithin Age `json:"pushedWithin,omitzero"`
	PulledWithin Age `json:"pulledWithin,omitzero"`
}

// Age is a duration that is written as "30d" or as time.Duration has it, "12h".
type Age time.Duration

// MarshalText implements encoding.TextMarshaler.
func (a Age) MarshalText() ([]byte, error) {
	d := time.Duration(a)
	if d%(24*time.Hour) == 0 && d != 0 {
		return fmt.Appendf(nil, "%dd", d/(24*time.Hour)), nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Age) UnmarshalText(text []byte) error {
	s := string(text)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is no duration like 30d or 12h", s)
		}
		*a = Age(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return fmt.Errorf("%q is no duration like 30d or 12h", s)
	}
	*a = Age(d)
	return nil
}

// Validate checks the rules; errors are of class ErrInvalid.
func (r *Rules) Validate() error {
	if len(r.ImmutableTags)+len(r.Keep) > maxPatterns {
		return problem.Invalid("keep", fmt.Sprintf("must be, with immutableTags, at most %d rules", maxPatterns), len(r.ImmutableTags)+len(r.Keep))
	}
	for i, p := range r.ImmutableTags {
		if err := validatePattern(fmt.Sprintf("immutableTags[%d]", i), p); err != nil {
			return err
		}
	}
	for i, k := range r.Keep {
		field := fmt.Sprintf("keep[%d]", i)
		if err := validatePattern(field+".tags", k.Tags); err != nil {
			return err
		}
		if k.Last < 0 {
			return problem.Invalid(field+".last", "must not be negative", k.Last)
		}
		if k.Last == 0 && k.PushedWithin == 0 && k.PulledWithin == 0 {
			return problem.Invalid(field, "must have last, pushedWithin or pulledWithin: it would keep nothing", k.Tags)
		}
	}
	return nil
}

func validatePattern(field, p string) error {
	if _, err := path.Match(p, "x"); err != nil || p == "" || len(p) > maxPattern || strings.ContainsAny(p, "/\x00") {
		return problem.Invalid(field, "must be a pattern of tags, as v*", p)
	}
	return nil
}

func matches(pattern, tag string) bool {
	ok, err := path.Match(pattern, tag)
	return ok && err == nil
}

// Immutable tells whether a tag, once there, stays where it is.
func (r *Rules) Immutable(tag string) bool {
	for _, p := range r.ImmutableTags {
		if matches(p, tag) {
			return true
		}
	}
	return false
}

// Rules gives a repository's rules.
func (s *Store) Rules(ctx context.Context, repository string) (*Rules, error) {
	return s.rules(ctx, s.db, repository)
}

func (s *Store) rules(ctx context.Context, q sqldb.Querier, repository string) (*Rules, error) {
	var document string
	err := q.QueryRowContext(ctx, s.db.Q(`SELECT document FROM index_rules WHERE repository = ?`), repository).Scan(&document)
	if errors.Is(err, sql.ErrNoRows) {
		return &Rules{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	var r Rules
	if err := json.Unmarshal([]byte(document), &r); err != nil {
		return nil, fmt.Errorf("read rules of %s: %w", repository, err)
	}
	return &r, nil
}

// SetRules replaces a repository's rules.
func (s *Store) SetRules(ctx context.Context, repository, actor string, r *Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	document, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("set rules: %w", err)
	}
	_, err = s.db.ExecContext(ctx, s.db.Q(`INSERT INTO index_rules (repository, document, changed, changed_by) VALUES (?, ?, ?, ?)
		ON CONFLICT (repository) DO UPDATE SET document = excluded.document, changed = excluded.changed, changed_by = excluded.changed_by`),
		repository, string(document), s.now().UnixNano(), actor)
	if err != nil {
		return fmt.Errorf("set rules: %w", err)
	}
	return nil
}

// WithRetention lists the repositories whose rules delete something.
func (s *Store) WithRetention(ctx context.Context) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT repository, document FROM index_rules ORDER BY repository`)
	all, err := collect(rows, err, func(scan func(...any) error) ([2]string, error) {
		var v [2]string
		return v, scan(&v[0], &v[1])
	})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var out []string
	for _, v := range all {
		var r Rules
		if err := json.Unmarshal([]byte(v[1]), &r); err != nil {
			return nil, fmt.Errorf("read rules of %s: %w", v[0], err)
		}
		if len(r.Keep) > 0 || r.UntaggedAfter > 0 {
			out = append(out, v[0])
		}
	}
	return out, nil
}
