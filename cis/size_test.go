package cis

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"cumulet.io/billing"
)

// res makes a container from "cpu/memory" requests and limits; "" leaves one out.
func res(requests, limits string) Container {
	list := func(s string) corev1.ResourceList {
		if s == "" {
			return nil
		}
		l := corev1.ResourceList{}
		cpu, mem, _ := strings.Cut(s, "/")
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if mem != "" {
			l[corev1.ResourceMemory] = resource.MustParse(mem)
		}
		return l
	}
	return Container{Resources: corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}
}

func sidecar(requests string) Container {
	c, always := res(requests, ""), corev1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func TestSizeOf(t *testing.T) {
	type cs = []Container
	for _, tt := range []struct {
		name       string
		init, main cs
		want       string
	}{
		{"nothing asked", nil, cs{res("", "")}, "c0.25-m0.5"},
		{"many that ask nothing share the smallest", nil, cs{res("", ""), res("", ""), res("", "")}, "c0.25-m0.5"},
		{"exactly a class", nil, cs{res("1/2Gi", "")}, "c1-m2"},
		{"a byte more", nil, cs{res("1/2147483649", "")}, "c1-m3"},
		{"a milli more", nil, cs{res("1001m/2Gi", "")}, "c2-m4"},
		{"a nano more", nil, cs{res("1000000001n/2Gi", "")}, "c2-m4"},
		{"memory forces more cpu", nil, cs{res("250m/2049Mi", "")}, "c0.5-m3"},
		{"memory step of a large row", nil, cs{res("8/17Gi", "")}, "c8-m20"},
		{"limit stands in for a missing request", nil, cs{res("", "2/4Gi")}, "c2-m4"},
		{"limit of one resource only", nil, cs{res("500m/", "4/3Gi")}, "c0.5-m3"},
		{"limit above request reserves nothing", nil, cs{res("500m/1Gi", "64/512Gi")}, "c0.5-m1"},
		{"sum of containers", nil, cs{res("300m/600Mi", ""), res("700m/600Mi", "")}, "c1-m2"},
		{"larger init wins per resource", cs{res("2/1Gi", "")}, cs{res("1/5Gi", "")}, "c2-m5"},
		{"inits do not add up", cs{res("2/4Gi", ""), res("2/4Gi", "")}, cs{res("1/2Gi", "")}, "c2-m4"},
		{"sidecar adds to containers", cs{sidecar("1/2Gi")}, cs{res("1/2Gi", "")}, "c2-m4"},
		{"sidecar before an init adds to it", cs{sidecar("1/2Gi"), res("3/6Gi", "")}, cs{res("1/2Gi", "")}, "c4-m8"},
		{"sidecar after an init does not", cs{res("4/8Gi", ""), sidecar("1/2Gi")}, cs{res("1/2Gi", "")}, "c4-m8"},
		{"sidecars before count, after do not", cs{sidecar("1/1Gi"), res("3/1Gi", ""), sidecar("2/1Gi")}, cs{res("500m/1Gi", "")}, "c4-m8"},
		{"largest", nil, cs{res("64/512Gi", "")}, "c64-m512"},
		{"too much memory", nil, cs{res("1/513Gi", "")}, ""},
		{"too much cpu", nil, cs{res("64001m/1Gi", "")}, ""},
		{"absurd", nil, cs{res("9E/9E", ""), res("9E/9E", "")}, ""},
		{"negative is nothing here", nil, cs{res("-1/-1Gi", "")}, "c0.25-m0.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := SizeOf(&Spec{InitContainers: tt.init, Containers: tt.main})
			if got.Class != tt.want {
				t.Fatalf("got %+v, want class %q", got, tt.want)
			}
			if got.MilliCPU < 0 || got.MemoryMiB < 0 {
				t.Fatalf("overflow: %+v", got)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	sizes := Sizes()
	if first, last := sizes[0], sizes[len(sizes)-1]; first != (billing.Size{Class: "c0.25-m0.5", MilliCPU: 250, MemoryMiB: 512}) ||
		last != (billing.Size{Class: "c64-m512", MilliCPU: 64000, MemoryMiB: 512 * 1024}) {
		t.Fatalf("table runs from %+v to %+v", first, last)
	}
	seen := map[string]bool{}
	for i, s := range sizes {
		if seen[s.Class] {
			t.Errorf("%s twice", s.Class)
		}
		seen[s.Class] = true
		if i > 0 && (s.MilliCPU < sizes[i-1].MilliCPU || s.MilliCPU == sizes[i-1].MilliCPU && s.MemoryMiB <= sizes[i-1].MemoryMiB) {
			t.Errorf("%s does not follow %s", s.Class, sizes[i-1].Class)
		}
		if s.MemoryMiB*1000 < s.MilliCPU*2*1024 || s.MemoryMiB*1000 > s.MilliCPU*8*1024 {
			t.Errorf("%s is not between 2 and 8 GiB for a vCPU", s.Class)
		}
		if got, ok := SizeByClass(s.Class); !ok || got != s {
			t.Errorf("SizeByClass(%s) = %+v, %v", s.Class, got, ok)
		}
		// A class asked for exactly is given exactly.
		if got := fitSize(s.MilliCPU, s.MemoryMiB); got != s {
			t.Errorf("fit of %s is %s", s.Class, got.Class)
		}
	}
	if _, ok := SizeByClass("c3-m7"); ok {
		t.Error("found a class that is not published")
	}
}
