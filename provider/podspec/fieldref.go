package podspec

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// fieldValue resolves a fieldRef: to a value, or to the name of a field that is known only when the sandbox is up.
func fieldValue(pod *corev1.Pod, path, field string) (value, runtime string, err error) {
	switch field {
	case "metadata.name":
		return pod.Name, "", nil
	case "metadata.namespace":
		return pod.Namespace, "", nil
	case "metadata.uid":
		return string(pod.UID), "", nil
	case "spec.nodeName":
		return pod.Spec.NodeName, "", nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, "", nil
	case "status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs":
		return "", field, nil
	case "metadata.labels":
		return formatMap(pod.Labels), "", nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), "", nil
	}
	if key, ok := subscript(field, "metadata.labels"); ok {
		return pod.Labels[key], "", nil
	}
	if key, ok := subscript(field, "metadata.annotations"); ok {
		return pod.Annotations[key], "", nil
	}
	return "", "", refuse(path+".fieldPath", "%q is not supported", cut(field, 80))
}

// subscript takes the key out of name['key'].
func subscript(s, name string) (string, bool) {
	rest, ok := strings.CutPrefix(s, name+"['")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(rest, "']")
}

// formatMap is the downward API's form of a map: key="value" lines, sorted by key.
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprintf("%v=%q", k, m[k]))
	}
	return strings.Join(lines, "\n")
}

// resourceValue resolves a resourceFieldRef: the amount divided by the divisor, rounded up. A limit that is not set is
// what the node can allocate. own is the container that asks; nil in a volume.
func (b *Builder) resourceValue(pod *corev1.Pod, own *corev1.Container, path string, ref *corev1.ResourceFieldSelector) (string, error) {
	c := own
	if ref.ContainerName != "" {
		c = nil
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				if list[i].Name == ref.ContainerName {
					c = &list[i]
				}
			}
		}
	}
	if c == nil {
		return "", refuse(path+".containerName", "there is no container %q", cut(ref.ContainerName, 80))
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	res := corev1.ResourceName(name)
	switch res {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
	default:
		return "", refuse(path+".resource", "%q is not supported", cut(ref.Resource, 80))
	}
	var q resource.Quantity
	switch kind {
	case "limits":
		var ok bool
		if q, ok = c.Resources.Limits[res]; !ok || q.IsZero() {
			q = b.set.Allocatable[res]
		}
	case "requests":
		q = c.Resources.Requests[res]
	default:
		return "", refuse(path+".resource", "%q is not supported", cut(ref.Resource, 80))
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if divisor.Sign() < 0 {
		return "", refuse(path+".divisor", "must be above 0")
	}
	n, d := float64(q.Value()), float64(divisor.Value())
	if res == corev1.ResourceCPU {
		n, d = float64(q.MilliValue()), float64(divisor.MilliValue())
	}
	return fmt.Sprint(int64(math.Ceil(n / d))), nil
}
