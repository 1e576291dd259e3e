package podspec

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// unenforced notices the limits that an instance is told of but that no engine holds it to: nobody should believe that
// they are there.
func unenforced(pod *corev1.Pod, out *Result) {
	var fields []string
	for i, v := range pod.Spec.Volumes {
		if e := v.EmptyDir; e != nil && e.SizeLimit != nil && e.Medium != corev1.StorageMediumMemory {
			fields = append(fields, fmt.Sprintf("spec.volumes[%d].emptyDir.sizeLimit", i))
		}
	}
	for name, group := range map[string][]corev1.Container{"containers": pod.Spec.Containers, "initContainers": pod.Spec.InitContainers} {
		for i, c := range group {
			if _, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]; ok {
				fields = append(fields, fmt.Sprintf("spec.%s[%d].resources.limits[ephemeral-storage]", name, i))
			}
		}
	}
	if len(fields) > 0 {
		slices.Sort(fields)
		out.notice("", "LimitNotEnforced", "disk limits are accepted but not enforced here: %s", strings.Join(fields, ", "))
	}
}
