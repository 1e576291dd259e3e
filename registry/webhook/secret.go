package webhook

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cumulet.io/internal/problem"
)

// secretPrefix marks a symmetric secret (Standard Webhooks, "Signature scheme").
const secretPrefix = "whsec_"

// secret signs until it expires; the newest has no end.
type secret struct {
	Key     []byte    `json:"key"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
}

func (s secret) live(now time.Time) bool { return s.Expires.IsZero() || now.Before(s.Expires) }

func newKey() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) //nolint:errcheck // it never fails
	return key
}

func parseSecret(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, problem.InvalidSecret("secret", "must be whsec_ and 24 to 64 bytes in base64")
	}
	return key, nil
}

func secretText(key []byte) string { return secretPrefix + base64.StdEncoding.EncodeToString(key) }

// signature is the webhook-signature header: one "v1," part for each live secret, with spaces between.
func signature(secrets []secret, id string, at time.Time, body []byte) string {
	var parts []string
	for _, s := range secrets {
		if !s.live(at) {
			continue
		}
		mac := hmac.New(sha256.New, s.Key)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		parts = append(parts, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(parts, " ")
}

// vault seals secrets for the database, so that a copy of it signs nothing.
type vault struct{ aead cipher.AEAD }

func openVault(path string) (*vault, error) {
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(path); err == nil {
			key, err = readKey(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("webhook key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("webhook key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &vault{aead}, err
}

// seal binds secrets to their hook's id.
func (v *vault) seal(id string, secrets []secret) ([]byte, error) {
	text, err := json.Marshal(secrets)
	if err != nil {
		return nil, err
	}
	return v.aead.Seal(nil, nil, text, []byte(id)), nil
}

func (v *vault) open(id string, sealed []byte) ([]secret, error) {
	text, err := v.aead.Open(nil, nil, sealed, []byte(id))
	if err != nil {
		return nil, errors.New("the secrets were sealed with another key: restore the key file, or rotate the hook's secret")
	}
	var out []secret
	return out, json.Unmarshal(text, &out)
}

func readKey(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o): chmod 600 it", path, st.Mode().Perm())
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s must hold 32 bytes in base64", path)
	}
	return key, nil
}

// makeKey makes the file whole; of several processes that start at once, one makes it.
func makeKey(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key.*") // of mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(base64.StdEncoding.EncodeToString(newKey()))
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
