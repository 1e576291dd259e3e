package registry

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"cumulet.io/internal/problem"
)

// Limits of names.
const (
	MaxOrgLength        = 63
	MaxAccountLength    = 63
	MaxRepositoryLength = 255
	MaxPasswordLength   = 1024
	MinPasswordLength   = 8
	// MinServicePasswordLength is for service accounts, which nobody types and no lockout protects.
	MinServicePasswordLength = 16
)

// The path components are those of the OCI distribution specification ("Pulling manifests": <name>). An org is stricter,
// so that its name is also a DNS label and a Kubernetes namespace.
var (
	orgPattern       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	accountPattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$`)
	componentPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*$`)
)

// TokenUser is the user name under which a hubtoken of audience "token" is given as password. No account has it.
const TokenUser = "hubtoken"

// ValidateOrg checks an org's name: a DNS label.
func ValidateOrg(field, name string) error {
	if len(name) > MaxOrgLength || !orgPattern.MatchString(name) {
		return problem.Invalid(field, "must be 1 to 63 of a-z, 0-9 and inner -", name)
	}
	return nil
}

// ValidateAccount checks an account's name.
func ValidateAccount(field, name string) error {
	if len(name) > MaxAccountLength || !accountPattern.MatchString(name) || name == TokenUser {
		return problem.Invalid(field, "must be 1 to 63 of a-z, 0-9 and inner . _ -, and not "+TokenUser, name)
	}
	return nil
}

// RobotAccountName is the account of an org's robot: no person can have it.
func RobotAccountName(org, robot string) string { return org + "+" + robot }

// SplitRobot takes a robot's account name apart.
func SplitRobot(account string) (org, robot string, ok bool) {
	org, robot, ok = strings.Cut(account, "+")
	return org, robot, ok && ValidateOrg("", org) == nil && ValidateName("", robot) == nil
}

// ValidateName checks the name of a team, a robot or an API key.
func ValidateName(field, name string) error {
	if len(name) > MaxAccountLength || !accountPattern.MatchString(name) {
		return problem.Invalid(field, "must be 1 to 63 of a-z, 0-9 and inner . _ -", name)
	}
	return nil
}

// MaxDescription is the longest description, in bytes.
const MaxDescription = 200

// ValidateDescription checks a text that people read.
func ValidateDescription(field, text string) error {
	if len(text) > MaxDescription || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return problem.Invalid(field, "must be at most 200 bytes without control characters", text)
	}
	return nil
}

// ValidatePassword checks the length of a new password for an account of a kind.
func ValidatePassword(field string, kind Kind, password string) error {
	least := MinPasswordLength
	if kind == Service {
		least = MinServicePasswordLength
	}
	if len(password) < least || len(password) > MaxPasswordLength {
		return problem.InvalidSecret(field, fmt.Sprintf("must be %d to %d bytes long", least, MaxPasswordLength))
	}
	return nil
}

// SplitRepository checks a full repository name, "org/repo" with any number of further components, and gives its org.
func SplitRepository(field, name string) (org string, err error) {
	org, rest, ok := strings.Cut(name, "/")
	if ok && len(name) <= MaxRepositoryLength && ValidateOrg(field, org) == nil {
		for component := range strings.SplitSeq(rest, "/") {
			ok = ok && componentPattern.MatchString(component)
		}
		if ok {
			return org, nil
		}
	}
	return "", problem.Invalid(field, "must be ORG/NAME[/NAME…] of lower-case path components, at most 255 bytes", name)
}
