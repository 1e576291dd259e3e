package cis

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"cumulet.io/billing"
	"cumulet.io/internal/problem"
)

// Limits of one instance.
const (
	MaxContainers     = 50
	MaxVolumes        = 64
	MaxFiles          = 4096
	MaxFilesBytes     = 3 << 20     // of one volume's files
	MaxVolumesBytes   = 6 << 20     // of the files of all volumes: what a create has room for
	MaxEnvBytes       = 1 << 20     // names and values of one container
	MaxStringBytes    = 128<<10 - 1 // one argument or NAME=VALUE: MAX_ARG_STRLEN of execve(2)
	maxLabels         = 64
	maxRegistryAuth   = 64
	maxFieldErrors    = 20
	maxPath           = 4096
	maxDNSSearchBytes = 2048
)

var (
	keyRule    = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)
	idRule     = regexp.MustCompile(`^i-[0-9a-v]{20}$`)
	serverRule = regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$`)
)

// fieldErrors collects what is wrong, in the document's order: the first few whole, the rest as a count.
type fieldErrors struct {
	list []*problem.Error
	n    int
}

func (e *fieldErrors) add(field, rule string, value any) { e.put(problem.Invalid(field, rule, value)) }

func (e *fieldErrors) addSecret(field, rule string) { e.put(problem.InvalidSecret(field, rule)) }

func (e *fieldErrors) put(p *problem.Error) {
	if e.n++; len(e.list) < maxFieldErrors {
		e.list = append(e.list, p)
	}
}

// err is the first error; its detail names the fields of the others.
func (e *fieldErrors) err() error {
	if e.n == 0 {
		return nil
	}
	first := e.list[0]
	if e.n == 1 {
		return first
	}
	also := make([]string, 0, len(e.list)-1)
	for _, p := range e.list[1:] {
		if p.Field != first.Field && !slices.Contains(also, p.Field) {
			also = append(also, p.Field)
		}
	}
	switch {
	case e.n > len(e.list):
		first.Detail += fmt.Sprintf(" (and %d more errors, in %s and others)", e.n-1, strings.Join(also, ", "))
	case len(also) > 0:
		first.Detail += " (also wrong: " + strings.Join(also, ", ") + ")"
	}
	return first
}

// one adds an error unless value is among allowed.
func one[T ~string](e *fieldErrors, field string, value T, allowed ...T) {
	if slices.Contains(allowed, value) {
		return
	}
	names := make([]string, 0, len(allowed))
	for _, a := range allowed {
		if a != "" {
			names = append(names, string(a))
		}
	}
	e.add(field, "must be one of "+strings.Join(names, ", "), value)
}

func (e *fieldErrors) between(field string, n, low, high int64) {
	if n < low || n > high {
		e.add(field, fmt.Sprintf("must be from %d to %d", low, high), n)
	}
}

func (e *fieldErrors) length(field, what string, n, high int) {
	if n > high {
		e.add(field, fmt.Sprintf("must have at most %d %s", high, what), n)
	}
}

func (e *fieldErrors) label(field, name string) {
	if len(validation.IsDNS1123Label(name)) > 0 {
		e.add(field, "must be a DNS label: 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit", name)
	}
}

func (e *fieldErrors) subdomain(field, name string) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		e.add(field, "must be a DNS name: at most 253 lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit", name)
	}
}

// ValidateOrg checks the syntax of an org's name: a DNS label.
func ValidateOrg(org string) error {
	var e fieldErrors
	e.label("org", org)
	return e.err()
}

// ValidID tells whether id has the form that NewID gives.
func ValidID(id string) bool { return idRule.MatchString(id) }

// ValidateCreate checks everything about a request that needs no knowledge of org, engine or host. Its error is a
// problem of class ErrInvalid that names the first offending field, in the order of the document, its rule and its
// value; values that may be secret are never repeated.
func ValidateCreate(req *CreateRequest) error {
	var e fieldErrors
	if !keyRule.MatchString(req.Key) {
		e.add("key", "must be 1 to 128 characters of [A-Za-z0-9._:-]", req.Key)
	}
	validateSpec(&e, "spec", &req.Spec)
	return e.err()
}

func validateSpec(e *fieldErrors, at string, s *Spec) {
	e.subdomain(at+".name", s.Name)
	validateLabels(e, at+".labels", s.Labels)
	one(e, at+".sandbox", s.Sandbox, "", Kata, GVisor, Runc)

	v := containerRules{errs: e, spec: s, volumes: map[string]*Volume{}, names: map[string]bool{}}
	for i := range s.Volumes {
		v.volumes[s.Volumes[i].Name] = &s.Volumes[i]
	}
	e.length(at+".initContainers", "init containers", len(s.InitContainers), MaxContainers)
	for i := range min(len(s.InitContainers), MaxContainers) {
		v.validate(fmt.Sprintf("%s.initContainers[%d]", at, i), &s.InitContainers[i], true)
	}
	if len(s.Containers) == 0 {
		e.add(at+".containers", "must have at least one container", 0)
	}
	e.length(at+".containers", "containers", len(s.Containers), MaxContainers)
	for i := range min(len(s.Containers), MaxContainers) {
		v.validate(fmt.Sprintf("%s.containers[%d]", at, i), &s.Containers[i], false)
	}
	validateSize(e, at+".containers", s)

	one(e, at+".restartPolicy", s.RestartPolicy, "", corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	validateVolumes(e, at+".volumes", s.Volumes)
	if n := FilesBytes(s.Volumes); n > MaxVolumesBytes {
		e.add(at+".volumes", fmt.Sprintf("must hold at most %d bytes of files in all", MaxVolumesBytes), n)
	}
	if s.Hostname != "" {
		e.subdomain(at+".hostname", s.Hostname)
		e.length(at+".hostname", "characters, as Linux has it", len(s.Hostname), 64)
	}
	if s.Domain != "" {
		e.subdomain(at+".domain", s.Domain)
	}
	if s.DNS != nil {
		validateDNS(e, at+".dns", s.DNS)
	}
	validateHostAliases(e, at+".hostAliases", s.HostAliases)
	if s.GraceSeconds != nil {
		e.between(at+".graceSeconds", *s.GraceSeconds, 0, math.MaxInt32)
	}
	if s.DeadlineSeconds != nil {
		e.between(at+".deadlineSeconds", *s.DeadlineSeconds, 1, math.MaxInt32)
	}
	if s.SecurityContext != nil {
		validatePodSecurity(e, at+".securityContext", s.SecurityContext)
	}
	validateRegistryAuth(e, at+".registryAuth", s.RegistryAuth)
	validateSource(e, at+".source", s.Source)
}

func validateLabels(e *fieldErrors, at string, labels map[string]string) {
	e.length(at, "labels", len(labels), maxLabels)
	for i, k := range slices.Sorted(maps.Keys(labels)) {
		if i == maxLabels {
			return
		}
		if len(validation.IsQualifiedName(k)) > 0 {
			e.add(at, "must have names of the form [prefix/]name, with at most 63 letters, digits, '-', '_' and '.' in the name", k)
		}
		if len(validation.IsValidLabelValue(labels[k])) > 0 {
			e.add(at+"["+k+"]", "must be at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit", labels[k])
		}
	}
}

func validateSize(e *fieldErrors, at string, s *Spec) {
	if size := SizeOf(s); size.Class == "" {
		largest := slices.MaxFunc(Sizes(), func(a, b billing.Size) int { return int(a.MilliCPU - b.MilliCPU + a.MemoryMiB - b.MemoryMiB) })
		e.add(at, fmt.Sprintf("must together ask for at most the largest size, %s: %d vCPU and %d GiB", largest.Class, largest.MilliCPU/1000, largest.MemoryMiB/gib),
			fmt.Sprintf("%dm vCPU and %d MiB", size.MilliCPU, size.MemoryMiB))
	}
}

func validateVolumes(e *fieldErrors, at string, volumes []Volume) {
	e.length(at, "volumes", len(volumes), MaxVolumes)
	seen := map[string]bool{}
	for i := range min(len(volumes), MaxVolumes) {
		v, at := &volumes[i], fmt.Sprintf("%s[%d]", at, i)
		e.label(at+".name", v.Name)
		if seen[v.Name] {
			e.add(at+".name", "must be unique among the volumes", v.Name)
		}
		seen[v.Name] = true
		if (v.EmptyDir == nil) == (v.Files == nil) {
			e.add(at, "must have exactly one of emptyDir and files", v.Name)
			continue
		}
		if v.EmptyDir != nil {
			e.between(at+".emptyDir.sizeLimitBytes", v.EmptyDir.SizeLimitBytes, 0, math.MaxInt64)
			continue
		}
		validateFiles(e, at+".files.files", v.Files)
	}
}

// FilesBytes is how much the files of volumes hold in all.
func FilesBytes(volumes []Volume) int {
	n := 0
	for _, v := range volumes {
		if v.Files != nil {
			for _, f := range v.Files.Files {
				n += len(f.Data)
			}
		}
	}
	return n
}

// ValidateFiles checks the files of a volume, as an update gives them.
func ValidateFiles(files *FilesVolume) error {
	var e fieldErrors
	validateFiles(&e, "files", files)
	return e.err()
}

func validateFiles(e *fieldErrors, at string, v *FilesVolume) {
	e.length(at, "files", len(v.Files), MaxFiles)
	total, seen := 0, map[string]bool{}
	for i := range min(len(v.Files), MaxFiles) {
		f, at := &v.Files[i], fmt.Sprintf("%s[%d]", at, i)
		total += len(f.Data)
		if !cleanRelative(f.Path) {
			e.add(at+".path", "must be a clean relative path without '..'", f.Path)
		} else if strings.HasPrefix(f.Path, "..") {
			e.add(at+".path", "must not begin with '..': such names are kept for atomic updates", f.Path)
		}
		if seen[f.Path] {
			e.add(at+".path", "must be unique in the volume", f.Path)
		}
		seen[f.Path] = true
		e.between(at+".mode", int64(f.Mode), 0, 0o777)
	}
	for i := range min(len(v.Files), MaxFiles) {
		for dir := path.Dir(v.Files[i].Path); dir != "." && dir != "/"; dir = path.Dir(dir) {
			if seen[dir] {
				e.add(fmt.Sprintf("%s[%d].path", at, i), "must not lie below another file of the volume", v.Files[i].Path)
				break
			}
		}
	}
	if total > MaxFilesBytes {
		e.add(at, fmt.Sprintf("must hold at most %d bytes of data in all", MaxFilesBytes), total)
	}
}

// cleanRelative tells whether p names something below a directory and cannot leave it.
func cleanRelative(p string) bool {
	return p != "" && p != "." && len(p) <= maxPath && p[0] != '/' && path.Clean(p) == p && p != ".." &&
		!strings.HasPrefix(p, "../") && !strings.ContainsRune(p, 0)
}

func validateDNS(e *fieldErrors, at string, d *DNS) {
	e.length(at+".servers", "servers", len(d.Servers), 3)
	for i, s := range d.Servers {
		if _, err := netip.ParseAddr(s); err != nil && i < 3 {
			e.add(fmt.Sprintf("%s.servers[%d]", at, i), "must be an IP address", s)
		}
	}
	e.length(at+".searches", "search domains", len(d.Searches), 32)
	total := 0
	for i, s := range d.Searches[:min(len(d.Searches), 32)] {
		total += len(s) + 1
		if s != "." && len(validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(s, "."))) > 0 {
			e.add(fmt.Sprintf("%s.searches[%d]", at, i), "must be a DNS name", s)
		}
	}
	e.length(at+".searches", "characters in all", total, maxDNSSearchBytes)
	e.length(at+".options", "options", len(d.Options), 32)
	for i, o := range d.Options[:min(len(d.Options), 32)] {
		if o == "" || len(o) > 255 || strings.ContainsFunc(o, func(r rune) bool { return r <= ' ' || r > '~' }) {
			e.add(fmt.Sprintf("%s.options[%d]", at, i), "must be one word of printable ASCII, as ndots:5", o)
		}
	}
}

func validateHostAliases(e *fieldErrors, at string, aliases []corev1.HostAlias) {
	e.length(at, "host aliases", len(aliases), 256)
	for i, a := range aliases[:min(len(aliases), 256)] {
		at := fmt.Sprintf("%s[%d]", at, i)
		if _, err := netip.ParseAddr(a.IP); err != nil {
			e.add(at+".ip", "must be an IP address", a.IP)
		}
		e.length(at+".hostnames", "names", len(a.Hostnames), 64)
		for j, h := range a.Hostnames[:min(len(a.Hostnames), 64)] {
			e.subdomain(fmt.Sprintf("%s.hostnames[%d]", at, j), h)
		}
	}
}

func validateRegistryAuth(e *fieldErrors, at string, auth []RegistryAuth) {
	e.length(at, "credentials", len(auth), maxRegistryAuth)
	for i, a := range auth[:min(len(auth), maxRegistryAuth)] {
		at := fmt.Sprintf("%s[%d]", at, i)
		if len(a.Server) > 512 || !serverRule.MatchString(a.Server) {
			e.addSecret(at+".server", `must be "host[:port][/path]", without scheme or user`) // a user:password@host must not come back
		}
		if strings.ContainsFunc(a.Username, func(r rune) bool { return r < ' ' }) || len(a.Username) > 512 || strings.Contains(a.Username, ":") {
			e.addSecret(at+".username", "must be at most 512 printable characters without ':'")
		}
		if len(a.Password) > 64<<10 {
			e.addSecret(at+".password", "must be at most 65536 bytes")
		}
	}
}

func validateSource(e *fieldErrors, at string, s Source) {
	for _, f := range []struct{ name, value string }{{"node", s.Node}, {"namespace", s.Namespace}, {"name", s.Name}, {"uid", s.UID}} {
		if len(f.value) > 253 || strings.ContainsFunc(f.value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			e.add(at+"."+f.name, "must be at most 253 printable ASCII characters without spaces", f.value)
		}
	}
}
