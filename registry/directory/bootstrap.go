package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
)

// Bootstrap is what must exist before anyone can log in.
type Bootstrap struct {
	// Admin is the first person, owner of Org, who administers the platform as long as nobody else does. Later changes
	// of its password or role are left alone.
	Admin Credential
	// Org is the first organisation.
	Org string
	// Services are the platform's own accounts. Their password files are the truth: a changed file changes the
	// password, and the actions follow this list.
	Services []ServiceAccount
}

// Credential is a name and a password in a file of mode 0600. A file that is missing is made, with a random password;
// for the admin only when the account is made too.
type Credential struct {
	Name         string
	PasswordFile string
	// Password is taken instead of the file when it is not empty.
	Password string
}

// ServiceAccount is a platform component's account.
type ServiceAccount struct {
	Credential
	// Platform is its actions on hubtoken.TypePlatform: node, operator, meter.
	Platform []string
}

// Bootstrap makes what is missing. It is idempotent, and safe to run in several processes on one database that share
// the password files.
func (s *Store) Bootstrap(ctx context.Context, b Bootstrap) error {
	for _, svc := range b.Services {
		if err := s.bootstrapService(ctx, svc); err != nil {
			return fmt.Errorf("bootstrap %s: %w", svc.Name, err)
		}
	}
	if b.Admin.Name == "" {
		return nil
	}
	if _, err := s.Account(ctx, b.Admin.Name); errors.Is(err, problem.ErrNotFound) {
		// The password is on disk before the account is in the database: after a crash between, the file is taken.
		password, err := b.Admin.password()
		if err != nil {
			return fmt.Errorf("bootstrap %s: %w", b.Admin.Name, err)
		}
		err = s.CreateAccount(ctx, registry.Account{Name: b.Admin.Name, Kind: registry.Person}, password)
		if err != nil && !errors.Is(err, problem.ErrConflict) {
			return fmt.Errorf("bootstrap %s: %w", b.Admin.Name, err)
		}
	} else if err != nil {
		return fmt.Errorf("bootstrap %s: %w", b.Admin.Name, err)
	}
	if err := s.bootstrapAdmin(ctx, b.Admin.Name); err != nil {
		return fmt.Errorf("bootstrap %s: %w", b.Admin.Name, err)
	}
	if b.Org == "" {
		return nil
	}
	if err := s.CreateOrg(ctx, b.Org, b.Admin.Name); err != nil && !errors.Is(err, problem.ErrConflict) {
		return fmt.Errorf("bootstrap organisation %s: %w", b.Org, err)
	}
	return nil
}

// bootstrapAdmin makes a person an administrator of the platform when it has none.
func (s *Store) bootstrapAdmin(ctx context.Context, name string) error {
	var n int
	if err := s.db.QueryRowContext(ctx, admins).Scan(&n); err != nil || n > 0 {
		return wrap("count administrators", err)
	}
	a, err := s.Account(ctx, name)
	if err != nil {
		return err
	}
	on, platform := false, append(slices.Clone(a.Platform), "admin")
	_, err = s.UpdateAccount(ctx, name, AccountPatch{Disabled: &on, Platform: &platform})
	return err
}

func (s *Store) bootstrapService(ctx context.Context, svc ServiceAccount) error {
	password, err := svc.password()
	if err != nil {
		return err
	}
	want := registry.Account{Name: svc.Name, Kind: registry.Service, Platform: svc.Platform}
	err = s.CreateAccount(ctx, want, password)
	if !errors.Is(err, problem.ErrConflict) {
		return err
	}
	have, hash, err := s.account(ctx, svc.Name)
	if err != nil {
		return err
	}
	if have.Kind != registry.Service {
		return problem.New(problem.ErrConflict, "the account is a person's")
	}
	if !slices.Equal(have.Platform, svc.Platform) {
		if _, err := s.db.ExecContext(ctx, s.db.Q(`UPDATE registry_accounts SET platform = ? WHERE name = ?`),
			strings.Join(svc.Platform, ","), svc.Name); err != nil {
			return fmt.Errorf("set actions: %w", err)
		}
	}
	if same, err := checkPassword(password, hash); err != nil || same {
		return err
	}
	return s.SetPassword(ctx, svc.Name, password)
}

// password reads the credential's password, making the file when it is missing.
func (c Credential) password() (string, error) {
	if c.Password != "" {
		return c.Password, nil
	}
	if c.PasswordFile == "" {
		return "", errors.New("neither password nor password file is given")
	}
	if err := os.MkdirAll(filepath.Dir(c.PasswordFile), 0o700); err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	if err := makePasswordFile(c.PasswordFile); err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	st, err := os.Stat(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("password file: %s may be read by others (mode %04o): chmod 600 it", c.PasswordFile, st.Mode().Perm())
	}
	text, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("password file: %w", err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// makePasswordFile puts a random password at path unless there is a file. The file appears whole or not at all, and
// of several makers one wins.
func makePasswordFile(path string) error {
	if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".password.*") // of mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(rand.Text() + "\n")
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		if err = os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	return errors.Join(err, os.Remove(tmp.Name()))
}
