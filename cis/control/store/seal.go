package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Key is the secret that specs are sealed with at rest: tenants' secrets are in them.
type Key [32]byte

// String hides the key from every log.
func (Key) String() string { return "store.Key(…)" }

// LoadKey reads a key file: 64 hex digits, readable by its owner alone. A missing file is made, with a random key.
func LoadKey(path string) (Key, error) {
	var key Key
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return key, fmt.Errorf("key file: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return key, fmt.Errorf("key file: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return key, fmt.Errorf("key file %s may be read by others: chmod 600 it", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return key, fmt.Errorf("key file: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != len(key) {
		return key, fmt.Errorf("key file %s must hold 64 hex digits", path)
	}
	copy(key[:], raw)
	return key, nil
}

// makeKey writes a new key so that either all of the file is there or nothing.
func makeKey(path string) (Key, error) {
	var key Key
	rand.Read(key[:]) //nolint:errcheck // never fails (crypto/rand)
	tmp, err := os.CreateTemp(filepath.Dir(path), ".key-*")
	if err != nil {
		return key, fmt.Errorf("make key file: %w", err)
	}
	_, werr := tmp.WriteString(hex.EncodeToString(key[:]) + "\n")
	err = errors.Join(werr, tmp.Chmod(0o600), tmp.Sync(), tmp.Close())
	if err == nil {
		// Link, not rename: of two processes that start at once, one makes the key and the other reads it.
		err = os.Link(tmp.Name(), path)
	}
	rerr := os.Remove(tmp.Name())
	if errors.Is(err, os.ErrExist) {
		return LoadKey(path)
	}
	if err = errors.Join(err, rerr); err != nil {
		return key, fmt.Errorf("make key file: %w", err)
	}
	return key, nil
}

// sealer seals and opens texts, and makes keyed hashes. Safe for concurrent use.
type sealer struct {
	aead cipher.AEAD
	mac  []byte
}

// sealVersion is the first byte of a sealed text: AES-256-GCM, 12 bytes of random nonce, then the ciphertext.
const sealVersion = 1

// errSealed is returned for a text that this key does not open.
var errSealed = errors.New("cannot be opened with this key")

func newSealer(key Key) (*sealer, error) {
	derive := func(info string) ([]byte, error) { return hkdf.Key(sha256.New, key[:], nil, info, 32) }
	ek, err := derive("cumulet cis spec sealing v1")
	if err != nil {
		return nil, err
	}
	mac, err := derive("cumulet cis spec hash v1")
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(ek)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead: aead, mac: mac}, nil
}

// seal binds text to the name: it opens under that name alone.
func (s *sealer) seal(name string, text []byte) []byte {
	n := s.aead.NonceSize()
	out := make([]byte, 1+n, 1+n+len(text)+s.aead.Overhead())
	out[0] = sealVersion
	rand.Read(out[1:]) //nolint:errcheck // never fails (crypto/rand)
	return s.aead.Seal(out, out[1:1+n], text, []byte(name))
}

func (s *sealer) open(name string, sealed []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < 1+n || sealed[0] != sealVersion {
		return nil, errSealed
	}
	text, err := s.aead.Open(nil, sealed[1:1+n], sealed[1+n:], []byte(name))
	if err != nil {
		return nil, errSealed
	}
	return text, nil
}

// hash is keyed: what is in a spec cannot be guessed from it.
func (s *sealer) hash(text []byte) string {
	h := hmac.New(sha256.New, s.mac)
	h.Write(text)
	return hex.EncodeToString(h.Sum(nil))
}
