package directory

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// HashCost is argon2id's cost (RFC 9106).
type HashCost struct {
	// MemoryKiB and Passes; zero means 19,456 and 2.
	MemoryKiB, Passes uint32
}

// Bounds on what a stored hash may ask of us.
const (
	maxHashMemoryKiB = 256 << 10
	maxHashPasses    = 16
	hashLen          = 32
	saltLen          = 16
)

// hashPassword gives the PHC string of a password: $argon2id$v=19$m=…,t=…,p=1$salt$hash.
func hashPassword(password string, cost HashCost) (string, error) {
	salt := make([]byte, saltLen)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("hash password: %w", err)
	}
	sum := argon2.IDKey([]byte(password), salt, cost.Passes, cost.MemoryKiB, 1, hashLen)
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, cost.MemoryKiB, cost.Passes,
		enc.EncodeToString(salt), enc.EncodeToString(sum)), nil
}

// checkPassword tells whether password is the one behind a PHC string, in time that does not depend on where they
// differ.
func checkPassword(password, phc string) (bool, error) {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, errors.New("check password: the stored hash is not argon2id")
	}
	var version int
	var cost HashCost
	if _, err := fmt.Sscanf(parts[2]+" "+parts[3], "v=%d m=%d,t=%d,p=1", &version, &cost.MemoryKiB, &cost.Passes); err != nil ||
		version != argon2.Version || cost.Passes == 0 || cost.Passes > maxHashPasses || cost.MemoryKiB > maxHashMemoryKiB {
		return false, errors.New("check password: the stored hash has other parameters than ours")
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(want) != hashLen {
		return false, errors.New("check password: the stored hash is broken")
	}
	got := argon2.IDKey([]byte(password), salt, cost.Passes, cost.MemoryKiB, 1, hashLen)
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
