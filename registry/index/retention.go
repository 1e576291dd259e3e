package index

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"cumulet.io/internal/problem"
)

// Removal is something that a repository's rules do not keep: a tag, or with Tag "" an untagged manifest.
type Removal struct {
	Tag    string        `json:"tag,omitempty"`
	Digest digest.Digest `json:"digest"`
	Pushed time.Time     `json:"pushed"`
	Pulled time.Time     `json:"pulled,omitzero"`
	// Reason is a sentence for people.
	Reason string `json:"reason"`
}

// Evaluate gives the tags that the rules do not keep, by name. It changes nothing and depends on nothing else.
func (r *Rules) Evaluate(tags []Tag, now time.Time) []Removal {
	kept, matched := map[string]bool{}, map[string]string{}
	for _, k := range r.Keep {
		var mine []Tag
		for _, t := range tags {
			if matches(k.Tags, t.Name) {
				mine = append(mine, t)
				matched[t.Name] = k.Tags
			}
		}
		slices.SortFunc(mine, func(a, b Tag) int { return cmp.Or(b.Pushed.Compare(a.Pushed), cmp.Compare(a.Name, b.Name)) })
		for i, t := range mine {
			if i < k.Last || within(t.Pushed, k.PushedWithin, now) || within(t.Pulled, k.PulledWithin, now) {
				kept[t.Name] = true
			}
		}
	}
	out := []Removal{}
	for _, t := range tags {
		if pattern, ok := matched[t.Name]; ok && !kept[t.Name] && !r.Immutable(t.Name) {
			out = append(out, Removal{Tag: t.Name, Digest: t.Digest, Pushed: t.Pushed, Pulled: t.Pulled, Reason: fmt.Sprintf("no rule for tags %q keeps it", pattern)})
		}
	}
	slices.SortFunc(out, func(a, b Removal) int { return cmp.Compare(a.Tag, b.Tag) })
	return out
}

func within(t time.Time, age Age, now time.Time) bool {
	return age > 0 && !t.IsZero() && now.Sub(t) <= time.Duration(age)
}

// Plan gives what a repository's rules would delete now.
func (s *Store) Plan(ctx context.Context, repository string) ([]Removal, error) {
	rules, err := s.Rules(ctx, repository)
	if err != nil {
		return nil, err
	}
	out, now := []Removal{}, s.now()
	if len(rules.Keep) > 0 {
		var tags []Tag
		for after := ""; ; after = tags[len(tags)-1].Name {
			page, err := s.Tags(ctx, repository, after, MaxPage)
			if err != nil {
				return nil, err
			}
			tags = append(tags, page...)
			if len(page) < MaxPage {
				break
			}
		}
		out = rules.Evaluate(tags, now)
	}
	if rules.UntaggedAfter > 0 {
		untagged, err := s.untagged(ctx, repository, now.Add(-time.Duration(rules.UntaggedAfter)))
		if err != nil {
			return nil, err
		}
		for _, u := range untagged {
			u.Reason = "no tag, index or image refers to it"
			out = append(out, u)
		}
	}
	return out, nil
}

// unreferenced is of a manifest m that no tag, no index and no image refers to.
const unreferenced = `NOT EXISTS (SELECT 1 FROM index_tags t WHERE t.repository = m.repository AND t.digest = m.digest)
	AND NOT EXISTS (SELECT 1 FROM index_manifest_blobs b WHERE b.blob = m.content AND b.repository = m.repository AND b.kind = 'manifest')
	AND NOT EXISTS (SELECT 1 FROM index_manifests i WHERE i.repository = m.repository AND i.digest = m.subject)`

// stillDue is an error of class ErrNotFound for a removal that was planned before somebody pushed the tag or manifest
// again, or referred to it. The org's writers are kept out, so that what it says holds until the transaction ends.
func (s *Store) stillDue(ctx context.Context, tx *sql.Tx, repository string, r *Removal) error {
	if r == nil {
		return nil
	}
	query, args := `SELECT count(*) FROM index_manifests m WHERE m.repository = ? AND m.digest = ? AND m.pushed = ? AND `+unreferenced, []any{repository, r.Digest, toNano(r.Pushed)}
	if r.Tag != "" {
		query, args = `SELECT count(*) FROM index_tags WHERE repository = ? AND digest = ? AND pushed = ? AND tag = ?`, append(args, r.Tag)
	}
	var due int
	if err := tx.QueryRowContext(ctx, s.db.Q(query), args...).Scan(&due); err != nil {
		return err
	}
	if due == 0 {
		return problem.New(problem.ErrNotFound, "it was pushed or referred to since it was to go")
	}
	return nil
}

// untagged lists manifests that nothing refers to and that were pushed and pulled before a time.
func (s *Store) untagged(ctx context.Context, repository string, before time.Time) ([]Removal, error) {
	rows, err := s.db.QueryContext(ctx, s.db.Q(`SELECT m.digest, m.pushed, m.pulled FROM index_manifests m WHERE m.repository = ? AND m.pushed < ? AND m.pulled < ?
		AND `+unreferenced+` ORDER BY m.pushed LIMIT 10000`), repository, before.UnixNano(), before.UnixNano())
	out, err := collect(rows, err, func(scan func(...any) error) (Removal, error) {
		var r Removal
		var pushed, pulled int64
		err := scan(&r.Digest, &pushed, &pulled)
		r.Pushed, r.Pulled = fromNano(pushed), fromNano(pulled)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("list untagged manifests: %w", err)
	}
	return out, nil
}
