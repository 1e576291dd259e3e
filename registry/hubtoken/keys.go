package hubtoken

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxTTL bounds the life of any hubtoken: a retired key is kept for verification this long and a little more.
const MaxTTL = 24 * time.Hour

// leeway is how far the clocks of issuer and verifier may differ.
const leeway = 10 * time.Second

// signingKey is a private key with its place in the rotation.
type signingKey struct {
	PublicKey
	private crypto.Signer
	created time.Time
	// retires is when the last token of a replaced key has run out; zero for the key that signs.
	retires time.Time
}

// keyFile is what is on disk: the private keys, the signing one first.
type keyFile struct {
	Keys []storedKey `json:"keys"`
}

type storedKey struct {
	jwk
	Created time.Time `json:"created"`
	Retires time.Time `json:"retires,omitzero"`
}

// KeysConfig says where signing keys are kept.
type KeysConfig struct {
	// Path is the file of private keys, mode 0600; made, with its directory, when missing.
	Path string
	// Algorithm is for keys made from now on; "" is EdDSA.
	Algorithm Algorithm
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Keys are the private keys of the platform's token issuer: one that signs, and replaced ones that verify until their
// last token has run out. Several processes may share the file: a rotation by one is seen by the others at their next
// use. Safe for concurrent use.
type Keys struct {
	cfg KeysConfig

	mu    sync.Mutex
	keys  []signingKey // signing key first
	stamp fileStamp
}

type fileStamp struct {
	mod  time.Time
	size int64
	ino  uint64
}

// OpenKeys reads the key file, or makes it with a first key. It refuses a file that others than its owner may read.
func OpenKeys(cfg KeysConfig) (*Keys, error) {
	cfg.Algorithm = cmp.Or(cfg.Algorithm, EdDSA)
	if cfg.Algorithm != EdDSA && cfg.Algorithm != ES256 {
		return nil, fmt.Errorf("open token keys: algorithm %q is neither EdDSA nor ES256", cfg.Algorithm)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	k := &Keys{cfg: cfg}
	if err := os.MkdirAll(filepath.Dir(cfg.Path), 0o700); err != nil {
		return nil, fmt.Errorf("open token keys: %w", err)
	}
	err := k.locked(func() error {
		err := k.load()
		if errors.Is(err, fs.ErrNotExist) {
			return k.addKey()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open token keys: %w", err)
	}
	return k, nil
}

// locked runs f holding both the mutex and a lock on the file that other processes respect.
func (k *Keys) locked(f func() error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	lock, err := os.OpenFile(k.cfg.Path+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // closing drops the lock; nothing was written
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return f()
}

// Rotate makes a new signing key. Tokens of the old one stay valid until they expire, and the old one is forgotten
// after the longest of them could have.
func (k *Keys) Rotate() error {
	err := k.locked(func() error {
		if err := k.load(); err != nil {
			return err
		}
		return k.addKey()
	})
	if err != nil {
		return fmt.Errorf("rotate token keys: %w", err)
	}
	return nil
}

// RotateIfOlder rotates when the signing key is older than age; of several processes that ask at once, one does.
func (k *Keys) RotateIfOlder(age time.Duration) error {
	err := k.locked(func() error {
		if err := k.load(); err != nil {
			return err
		}
		if k.cfg.Now().Sub(k.keys[0].created) <= age {
			return nil
		}
		return k.addKey()
	})
	if err != nil {
		return fmt.Errorf("rotate token keys: %w", err)
	}
	return nil
}

// Public gives every key that may still verify a token, the signing one first.
func (k *Keys) Public() ([]PublicKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.refresh(); err != nil {
		return nil, err
	}
	var out []PublicKey
	for _, s := range k.keys {
		if s.retires.IsZero() || k.cfg.Now().Before(s.retires) {
			out = append(out, s.PublicKey)
		}
	}
	return out, nil
}

// JWKS gives the document that verifiers fetch (RFC 7517).
func (k *Keys) JWKS() ([]byte, error) {
	pub, err := k.Public()
	if err != nil {
		return nil, err
	}
	return MarshalJWKS(pub)
}

// Lookup implements KeySet, for a verifier in the issuer's own process.
func (k *Keys) Lookup(kid string) (PublicKey, bool) {
	pub, err := k.Public()
	if err != nil {
		return PublicKey{}, false
	}
	i := slices.IndexFunc(pub, func(p PublicKey) bool { return p.KID == kid })
	if i < 0 {
		return PublicKey{}, false
	}
	return pub[i], true
}

// signing gives the key that signs now.
func (k *Keys) signing() (signingKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.refresh(); err != nil {
		return signingKey{}, err
	}
	return k.keys[0], nil
}

// refresh reads the file again when another process has replaced it. While it cannot be read, the known keys serve.
func (k *Keys) refresh() error {
	st, err := stampOf(k.cfg.Path)
	if err != nil || st == k.stamp {
		return nil //nolint:nilerr // a file that is gone for the moment does not stop the service
	}
	if err := k.load(); err != nil {
		return fmt.Errorf("token keys: %w", err)
	}
	return nil
}

func stampOf(path string) (fileStamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileStamp{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&0o077 != 0 {
		return fileStamp{}, fmt.Errorf("%s may be read by others (mode %04o): chmod 600 it, and rotate", path, st.Mode&0o777)
	}
	return fileStamp{mod: time.Unix(st.Mtim.Unix()), size: st.Size, ino: st.Ino}, nil
}

func (k *Keys) load() error {
	stamp, err := stampOf(k.cfg.Path)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(k.cfg.Path)
	if err != nil {
		return err
	}
	var file keyFile
	// The decoder's own error might quote key material.
	if json.Unmarshal(text, &file) != nil || len(file.Keys) == 0 || len(file.Keys) > maxJWKSKeys {
		return fmt.Errorf("%s is not a file of token keys", k.cfg.Path)
	}
	keys := make([]signingKey, 0, len(file.Keys))
	for i, s := range file.Keys {
		key, err := s.private()
		if err != nil {
			return fmt.Errorf("%s: key %d: %w", k.cfg.Path, i, err)
		}
		keys = append(keys, key)
	}
	if !keys[0].retires.IsZero() {
		return fmt.Errorf("%s holds no signing key", k.cfg.Path)
	}
	k.keys, k.stamp = keys, stamp
	return nil
}

func (s storedKey) private() (signingKey, error) {
	pub, alg, err := s.public()
	if err != nil {
		return signingKey{}, err
	}
	d, err := unb64(s.D)
	if err != nil || len(d) != 32 {
		return signingKey{}, errors.New("d has the wrong form")
	}
	var private crypto.Signer
	if alg == EdDSA {
		private = ed25519.NewKeyFromSeed(d)
	} else if private, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), d); err != nil {
		return signingKey{}, errors.New("d is out of range")
	}
	if p, ok := private.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !p.Equal(pub) {
		return signingKey{}, errors.New("the private half does not fit the public one")
	}
	kid, err := Thumbprint(pub)
	if err != nil {
		return signingKey{}, err
	}
	return signingKey{PublicKey: PublicKey{KID: kid, Alg: alg, Key: pub}, private: private,
		created: s.Created, retires: s.Retires}, nil
}

// addKey puts a new signing key first, gives the old one its end, drops those past theirs, and writes the file.
func (k *Keys) addKey() error {
	now := k.cfg.Now().UTC()
	fresh, err := newKey(k.cfg.Algorithm, now)
	if err != nil {
		return err
	}
	keys := []signingKey{fresh}
	for _, old := range k.keys {
		if old.retires.IsZero() {
			// Two leeways: the issuer's clock may be behind another issuer's, the verifier's behind both.
			old.retires = now.Add(MaxTTL + 2*leeway)
		}
		if now.Before(old.retires) {
			keys = append(keys, old)
		}
	}
	if len(keys) > maxJWKSKeys {
		return fmt.Errorf("%d keys are still in use: rotate less often", len(keys)-1)
	}
	if err := k.store(keys); err != nil {
		return err
	}
	return k.load()
}

func newKey(alg Algorithm, now time.Time) (signingKey, error) {
	var private crypto.Signer
	var err error
	if alg == ES256 {
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		_, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return signingKey{}, fmt.Errorf("make key: %w", err)
	}
	kid, err := Thumbprint(private.Public())
	if err != nil {
		return signingKey{}, err
	}
	return signingKey{PublicKey: PublicKey{KID: kid, Alg: alg, Key: private.Public()}, private: private, created: now}, nil
}

func (k *Keys) store(keys []signingKey) error {
	var file keyFile
	for _, s := range keys {
		j, err := publicJWK(s.Key)
		if err != nil {
			return err
		}
		switch p := s.private.(type) {
		case ed25519.PrivateKey:
			j.D = b64(p.Seed())
		case *ecdsa.PrivateKey:
			d, err := p.Bytes()
			if err != nil {
				return fmt.Errorf("encode key: %w", err)
			}
			j.D = b64(d)
		}
		j.Kid, j.Alg = s.KID, string(s.Alg)
		file.Keys = append(file.Keys, storedKey{jwk: j, Created: s.created, Retires: s.retires})
	}
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(k.cfg.Path, append(text, '\n'))
}

// replaceFile writes a file of mode 0600 so that a crash leaves either the old or the new one.
func replaceFile(path string, text []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // CreateTemp makes 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	if _, err := tmp.Write(text); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return errors.Join(err, tmp.Close())
	}
	return errors.Join(tmp.Close(), dir.Sync(), dir.Close())
}
