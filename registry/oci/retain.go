package oci

import (
	"context"
	"errors"
	"fmt"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/index"
)

// Retain deletes what a repository's rules do not keep, or with dryRun only tells.
func (r *Registry) Retain(ctx context.Context, name, account, address string, dryRun bool) ([]index.Removal, error) {
	plan, err := r.cfg.Index.Plan(ctx, name)
	if err != nil || dryRun {
		return plan, err
	}
	done := []index.Removal{}
	for _, item := range plan {
		by := actor{name: account, address: address, cause: index.CauseRetention, planned: &item}
		if item.Tag != "" {
			err = r.removeTag(ctx, name, item.Tag, by)
		} else {
			err = r.removeManifest(ctx, name, item.Digest, by)
		}
		switch {
		case errors.Is(err, problem.ErrNotFound), errors.Is(err, problem.ErrForbidden):
			continue // it went, was pushed again, or a rule changed, meanwhile
		case err != nil:
			return done, fmt.Errorf("apply the rules of %s: %w", name, err)
		}
		done = append(done, item)
	}
	return done, nil
}

// retainAll applies the rules of all repositories.
func (r *Registry) retainAll(ctx context.Context) error {
	names, err := r.cfg.Index.WithRetention(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		done, rerr := r.Retain(ctx, name, registry.ActorPlatform, "", false)
		if len(done) > 0 {
			r.cfg.Logger.InfoContext(ctx, "rules applied", "repository", name, "removed", len(done))
		}
		err = errors.Join(err, rerr)
	}
	return err
}

// SetRules replaces a repository's rules for an account.
func (r *Registry) SetRules(ctx context.Context, name, account, address string, rules *index.Rules) error {
	if err := rules.Validate(); err != nil {
		return err
	}
	if err := r.audit(ctx, actor{name: account, address: address, cause: "rules"}, "rules.set", name, name); err != nil {
		return err
	}
	return r.cfg.Index.SetRules(ctx, name, account, rules)
}
