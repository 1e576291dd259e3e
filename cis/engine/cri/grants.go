package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// grants remembers which orgs have pulled from which repositories. An image that lies on the node because one org pulled
// it is not there for another, until that one has shown the registry that it may pull it: else the node's cache would
// hand private images to everyone who knows their name. What the engine never pulled itself (an image that the operator
// imported) is for all. Kubernetes has the same rule (KEP-2535).
type grants struct {
	path string

	mu   sync.Mutex
	orgs map[string]map[string]bool // repository to orgs; an empty set: pulled from, nobody known to be allowed
}

func openGrants(root string) (*grants, error) {
	g := &grants{path: filepath.Join(root, "grants.json"), orgs: map[string]map[string]bool{}}
	data, err := os.ReadFile(g.path)
	if errors.Is(err, os.ErrNotExist) {
		return g, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read image grants: %w", err)
	}
	if err := json.Unmarshal(data, &g.orgs); err != nil {
		return nil, fmt.Errorf("read image grants %s: %w; remove the node's images before removing the file", g.path, err)
	}
	return g, nil
}

// allows tells whether org may use a cached image of the repository.
func (g *grants) allows(org, repository string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	orgs, pulled := g.orgs[repository]
	return !pulled || orgs[org]
}

// pulling is called before a pull, so that a crash in it leaves no image that looks like the operator's.
func (g *grants) pulling(repository string) error {
	return g.change(func() bool {
		if g.orgs[repository] != nil {
			return false
		}
		g.orgs[repository] = map[string]bool{}
		return true
	})
}

// pulled is called when the registry has let org pull.
func (g *grants) pulled(org, repository string) error {
	return g.change(func() bool {
		if g.orgs[repository] == nil {
			g.orgs[repository] = map[string]bool{}
		}
		if g.orgs[repository][org] {
			return false
		}
		g.orgs[repository][org] = true
		return true
	})
}

// change writes the file whole when f has changed something.
func (g *grants) change(f func() bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !f() {
		return nil
	}
	data, err := json.Marshal(g.orgs)
	if err == nil {
		err = writeFileAtomic(g.path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write image grants: %w", err)
	}
	return nil
}
