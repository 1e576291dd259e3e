package role

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cumulet.io/registry/hubtoken"
)

// The platform's own accounts: each role has one, with what it needs.
const (
	accountKubelet = "kubelet"
	accountControl = "control"
	accountBilling = "billing"
)

// credential gives the password in credentials/NAME of the state directory and makes one up when the file is not there.
// Roles on other machines need a copy of the same file.
func (p *process) credential(name string) (string, error) {
	path := p.cfg.Path("credentials", name)
	for {
		data, err := os.ReadFile(path)
		if err == nil {
			if pw := strings.TrimSpace(string(data)); pw != "" {
				return pw, nil
			}
			return "", fmt.Errorf("credential %s: the file is empty; remove it to have a new one made", path)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("credential %s: %w", name, err)
		}
		if err := makeCredential(path); err != nil {
			return "", fmt.Errorf("credential %s: %w", name, err)
		}
		p.log.Info("made a credential; roles on other machines need a copy", "file", path)
	}
}

// makeCredential makes a password that begins with a letter, as Filebeat needs it, and writes a new password to path whole or not at all; of two makers one wins.
func makeCredential(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // a left-over is harmless
	if _, err := tmp.WriteString("c" + rand.Text() + "\n"); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// source gives tokens of a platform account for one service.
func (p *process) source(account, audience string, actions ...string) (hubtoken.Source, error) {
	if _, err := p.credential(account); err != nil {
		return nil, err
	}
	return hubtoken.NewPasswordSource(hubtoken.PasswordConfig{
		Realm:        p.cfg.Registry.URL + "/token",
		Service:      audience,
		Scopes:       []string{"platform:*:" + strings.Join(actions, ",")},
		Username:     account,
		ReadPassword: func() (string, error) { return p.credential(account) },
	})
}

// verifier checks tokens by the registry's keys.
func (p *process) verifier() (hubtoken.Verifier, error) {
	return hubtoken.NewVerifier(hubtoken.Config{JWKSURL: p.cfg.Registry.URL + "/.well-known/jwks.json", Issuer: tokenIssuer})
}

// tokenIssuer is the "iss" of every token of the platform.
const tokenIssuer = "cumulet"
