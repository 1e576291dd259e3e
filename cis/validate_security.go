package cis

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// safeSysctls are the kernel parameters that belong to the sandbox alone: Kubernetes' safe set.
func safeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
		"net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
	}
}

func validatePodSecurity(e *fieldErrors, at string, s *corev1.PodSecurityContext) {
	validateIDs(e, at, s.RunAsUser, s.RunAsGroup)
	if s.FSGroup != nil {
		e.between(at+".fsGroup", *s.FSGroup, 0, math.MaxInt32)
	}
	e.length(at+".supplementalGroups", "groups", len(s.SupplementalGroups), 1024)
	for i, g := range s.SupplementalGroups[:min(len(s.SupplementalGroups), 1024)] {
		e.between(fmt.Sprintf("%s.supplementalGroups[%d]", at, i), g, 0, math.MaxInt32)
	}
	if p := s.SupplementalGroupsPolicy; p != nil {
		one(e, at+".supplementalGroupsPolicy", *p, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if p := s.FSGroupChangePolicy; p != nil {
		one(e, at+".fsGroupChangePolicy", *p, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	safe := safeSysctls()
	e.length(at+".sysctls", "sysctls", len(s.Sysctls), 32)
	for i, c := range s.Sysctls[:min(len(s.Sysctls), 32)] {
		name := strings.ReplaceAll(c.Name, "/", ".")
		if !slices.Contains(safe, name) {
			e.add(fmt.Sprintf("%s.sysctls[%d].name", at, i), "must be one of the safe sysctls: "+strings.Join(safe, ", "), c.Name)
		}
		if len(c.Value) > 256 || strings.ContainsFunc(c.Value, func(r rune) bool { return r < ' ' && r != '\t' }) {
			e.add(fmt.Sprintf("%s.sysctls[%d].value", at, i), "must be at most 256 characters on one line", c.Value)
		}
	}
	refusePlatform(e, at, s.SELinuxOptions, s.WindowsOptions)
	if s.SELinuxChangePolicy != nil {
		e.add(at+".seLinuxChangePolicy", unsupported, *s.SELinuxChangePolicy)
	}
	validateProfiles(e, at, s.SeccompProfile, s.AppArmorProfile)
}

func validateContainerSecurity(e *fieldErrors, at string, s *corev1.SecurityContext, sandbox SandboxClass) {
	validateIDs(e, at, s.RunAsUser, s.RunAsGroup)
	privileged := s.Privileged != nil && *s.Privileged
	if privileged && sandbox != Runc {
		e.add(at+".privileged", "may be true only with sandbox runc: the other classes give no access to the host", true)
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if privileged {
			e.add(at+".allowPrivilegeEscalation", "must not be false when privileged is true", false)
		} else if s.Capabilities != nil && slices.ContainsFunc(s.Capabilities.Add, sysAdmin) {
			e.add(at+".allowPrivilegeEscalation", "must not be false when the capability SYS_ADMIN is added", false)
		}
	}
	if c := s.Capabilities; c != nil {
		validateCapabilities(e, at+".capabilities.add", c.Add)
		validateCapabilities(e, at+".capabilities.drop", c.Drop)
	}
	if p := s.ProcMount; p != nil {
		one(e, at+".procMount", *p, corev1.DefaultProcMount)
	}
	refusePlatform(e, at, s.SELinuxOptions, s.WindowsOptions)
	validateProfiles(e, at, s.SeccompProfile, s.AppArmorProfile)
}

func sysAdmin(c corev1.Capability) bool {
	return c == "SYS_ADMIN" || c == "CAP_SYS_ADMIN" || c == "ALL"
}

func validateCapabilities(e *fieldErrors, at string, list []corev1.Capability) {
	e.length(at, "capabilities", len(list), 64)
	for i, c := range list[:min(len(list), 64)] {
		if c == "" || len(c) > 64 || strings.Trim(string(c), "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != "" {
			e.add(fmt.Sprintf("%s[%d]", at, i), "must be a capability's name in capitals, as NET_ADMIN", c)
		}
	}
}

func validateIDs(e *fieldErrors, at string, user, group *int64) {
	if user != nil {
		e.between(at+".runAsUser", *user, 0, math.MaxInt32)
	}
	if group != nil {
		e.between(at+".runAsGroup", *group, 0, math.MaxInt32)
	}
}

func refusePlatform(e *fieldErrors, at string, se *corev1.SELinuxOptions, win *corev1.WindowsSecurityContextOptions) {
	if se != nil {
		e.add(at+".seLinuxOptions", unsupported, "set")
	}
	if win != nil {
		e.add(at+".windowsOptions", unsupported, "set")
	}
}

func validateProfiles(e *fieldErrors, at string, seccomp *corev1.SeccompProfile, apparmor *corev1.AppArmorProfile) {
	if seccomp != nil {
		one(e, at+".seccompProfile.type", seccomp.Type, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
		if seccomp.LocalhostProfile != nil {
			e.add(at+".seccompProfile.localhostProfile", unsupported, *seccomp.LocalhostProfile)
		}
	}
	if apparmor != nil {
		one(e, at+".appArmorProfile.type", apparmor.Type, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
		if apparmor.LocalhostProfile != nil {
			e.add(at+".appArmorProfile.localhostProfile", unsupported, *apparmor.LocalhostProfile)
		}
	}
}
