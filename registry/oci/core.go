package oci

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/reference"
)

// shared is the storage driver that hands the core a driver which exists already, so that the core and what is around
// it use the same one.
const (
	shared       = "shared"
	optionDriver = "driver"
)

type sharedDriver struct{}

// Create implements factory.StorageDriverFactory.
func (sharedDriver) Create(_ context.Context, parameters map[string]any) (driver.StorageDriver, error) {
	d, ok := parameters[optionDriver].(driver.StorageDriver)
	if !ok {
		return nil, errors.New("the option driver is missing")
	}
	return d, nil
}

// configuration is the core's.
func (r *Registry) configuration(secret string) *configuration.Configuration {
	c := &configuration.Configuration{Version: "0.1"}
	c.HTTP.Secret = secret
	// Locations name no host, so that a client's Host header goes nowhere.
	c.HTTP.RelativeURLs = true
	c.Storage = configuration.Storage{
		shared:     {optionDriver: r.driver},
		"delete":   {"enabled": true},
		"redirect": {"disable": true},
		// No cache of descriptors: it would know blobs that garbage collection has taken, and each look renews a lease.
		// Abandoned uploads are the storage's to remove.
		"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
	}
	c.Auth = configuration.Auth{extension: {optionRegistry: r}}
	c.Middleware = map[string][]configuration.Middleware{
		"repository": {{Name: extension, Options: configuration.Parameters{optionRegistry: r}}}}
	// Manifests do not go through the core's handlers; see openStore.
	c.Validation.Disabled = true
	return c
}

// openStore opens the core's storage for what is served around its handlers. An index may name manifests that are
// elsewhere (image-spec 1.1, "sparse"), a layer may have URLs (Windows bases).
func openStore(ctx context.Context, d driver.StorageDriver) (distribution.Namespace, error) {
	return storage.NewRegistry(ctx, d, storage.EnableDelete, storage.ManifestURLsAllowRegexp(regexp.MustCompile("^https?://")))
}

// repository gives the core's storage of a repository.
func (r *Registry) repository(ctx context.Context, name string) (distribution.Repository, error) {
	named, err := reference.WithName(name)
	if err != nil {
		return nil, fmt.Errorf("repository %q: %w", name, err)
	}
	return r.store.Repository(ctx, named)
}
