package hubtoken

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// Algorithm is a JWS signature algorithm (RFC 7518, RFC 8037) that hubtokens may be signed with.
type Algorithm string

// The algorithms. There is no "none" and nothing symmetric.
const (
	EdDSA Algorithm = "EdDSA"
	ES256 Algorithm = "ES256"
)

// Bounds on a key document, so that a wrong or hostile one costs little.
const (
	maxJWKSBytes = 1 << 20
	maxJWKSKeys  = 100
)

// PublicKey is one verification key. A token that names its KID must be signed with its Alg and no other.
type PublicKey struct {
	KID string
	Alg Algorithm
	// Key is an ed25519.PublicKey for EdDSA and an *ecdsa.PublicKey on P-256 for ES256.
	Key crypto.PublicKey
}

// KeySet finds verification keys by id. Implementations are safe for concurrent use.
type KeySet interface {
	Lookup(kid string) (PublicKey, bool)
}

// jwk is a JSON Web Key (RFC 7517) of the kinds used here; D is set in the private file alone.
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Y   string `json:"y,omitempty"`
	D   string `json:"d,omitempty"`
	Kid string `json:"kid,omitempty"`
	Alg string `json:"alg,omitempty"`
	Use string `json:"use,omitempty"`
}

// jwks is a JWK Set (RFC 7517, section 5).
type jwks struct {
	Keys []jwk `json:"keys"`
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func unb64(s string) ([]byte, error) { return base64.RawURLEncoding.Strict().DecodeString(s) }

// publicJWK gives the public members of a key, without kid, alg and use.
func publicJWK(pub crypto.PublicKey) (jwk, error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return jwk{Kty: "OKP", Crv: "Ed25519", X: b64(k)}, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return jwk{}, errors.New("the curve is not P-256")
		}
		point, err := k.Bytes()
		if err != nil {
			return jwk{}, fmt.Errorf("encode point: %w", err)
		}
		return jwk{Kty: "EC", Crv: "P-256", X: b64(point[1:33]), Y: b64(point[33:65])}, nil
	default:
		return jwk{}, fmt.Errorf("keys of type %T are not used for hubtokens", pub)
	}
}

// Thumbprint is the RFC 7638 thumbprint of a public key with SHA-256, base64url: the kid of our keys.
func Thumbprint(pub crypto.PublicKey) (string, error) {
	k, err := publicJWK(pub)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	// The required members in lexicographic order with no white space (RFC 7638, section 3; RFC 8037, section 2).
	text := `{"crv":"` + k.Crv + `","kty":"` + k.Kty + `","x":"` + k.X + `"`
	if k.Kty == "EC" {
		text += `,"y":"` + k.Y + `"`
	}
	sum := sha256.Sum256([]byte(text + "}"))
	return b64(sum[:]), nil
}

// public decodes the verification key of a JWK, checking that a point is on its curve.
func (k jwk) public() (crypto.PublicKey, Algorithm, error) {
	x, err := unb64(k.X)
	if err != nil {
		return nil, "", errors.New("x is not base64url")
	}
	switch {
	case k.Kty == "OKP" && k.Crv == "Ed25519":
		if len(x) != ed25519.PublicKeySize {
			return nil, "", errors.New("x has the wrong length")
		}
		return ed25519.PublicKey(x), EdDSA, nil
	case k.Kty == "EC" && k.Crv == "P-256":
		y, err := unb64(k.Y)
		if err != nil || len(x) != 32 || len(y) != 32 {
			return nil, "", errors.New("x or y has the wrong form")
		}
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
		if err != nil {
			return nil, "", errors.New("the point is not on the curve")
		}
		return pub, ES256, nil
	default:
		return nil, "", errors.New("unknown key type")
	}
}

// ParseJWKS decodes a key document (RFC 7517). Keys that are of an unknown kind, not for signatures, without kid or
// malformed are passed over, as section 5 asks; a document that leaves no key is an error, as is one above 1 MiB or
// 100 keys.
func ParseJWKS(doc []byte) ([]PublicKey, error) {
	if len(doc) > maxJWKSBytes {
		return nil, fmt.Errorf("key document: larger than %d bytes", maxJWKSBytes)
	}
	var set jwks
	if err := json.Unmarshal(doc, &set); err != nil {
		return nil, errors.New("key document: not a JWK set")
	}
	if len(set.Keys) > maxJWKSKeys {
		return nil, fmt.Errorf("key document: more than %d keys", maxJWKSKeys)
	}
	var out []PublicKey
	for _, k := range set.Keys {
		pub, alg, err := k.public()
		if err != nil || k.Kid == "" || k.Use != "" && k.Use != "sig" || k.Alg != "" && k.Alg != string(alg) {
			continue
		}
		out = append(out, PublicKey{KID: k.Kid, Alg: alg, Key: pub})
	}
	if len(out) == 0 {
		return nil, errors.New("key document: holds no usable key")
	}
	return out, nil
}

// MarshalJWKS encodes verification keys as a JWK set.
func MarshalJWKS(keys []PublicKey) ([]byte, error) {
	set := jwks{Keys: []jwk{}}
	for _, k := range keys {
		j, err := publicJWK(k.Key)
		if err != nil {
			return nil, fmt.Errorf("key document: %w", err)
		}
		j.Kid, j.Alg, j.Use = k.KID, string(k.Alg), "sig"
		set.Keys = append(set.Keys, j)
	}
	return json.Marshal(set)
}
