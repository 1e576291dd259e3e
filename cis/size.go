package cis

import (
	"math"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"cumulet.io/billing"
)

// Sizes is the published table of size classes, ascending by vCPU and then by memory. Every class has between 2 and
// 8 GiB for a vCPU. The result is the caller's.
func Sizes() []billing.Size {
	sizes := make([]billing.Size, 0, 96)
	for _, r := range sizeRows() {
		for mem := r.minMiB; mem <= r.maxMiB; mem += r.stepMiB {
			sizes = append(sizes, billing.Size{Class: sizeClass(r.milliCPU, mem), MilliCPU: r.milliCPU, MemoryMiB: mem})
		}
	}
	return sizes
}

// sizeRow is the memory steps of one vCPU step.
type sizeRow struct{ milliCPU, minMiB, maxMiB, stepMiB int64 }

const gib = 1024 // MiB

func sizeRows() []sizeRow {
	return []sizeRow{
		{250, gib / 2, gib / 2, gib},
		{250, 1 * gib, 2 * gib, gib},
		{500, 1 * gib, 4 * gib, gib},
		{1000, 2 * gib, 8 * gib, gib},
		{2000, 4 * gib, 16 * gib, gib},
		{4000, 8 * gib, 32 * gib, 2 * gib},
		{8000, 16 * gib, 64 * gib, 4 * gib},
		{12000, 24 * gib, 96 * gib, 12 * gib},
		{16000, 32 * gib, 128 * gib, 8 * gib},
		{24000, 48 * gib, 192 * gib, 24 * gib},
		{32000, 64 * gib, 256 * gib, 32 * gib},
		{48000, 96 * gib, 384 * gib, 48 * gib},
		{64000, 128 * gib, 512 * gib, 64 * gib},
	}
}

// sizeClass names a class by vCPU and GiB, both without needless digits: "c0.25-m0.5", "c1-m2".
func sizeClass(milliCPU, memoryMiB int64) string {
	f := func(n, unit int64) string { return strconv.FormatFloat(float64(n)/float64(unit), 'f', -1, 64) }
	return "c" + f(milliCPU, 1000) + "-m" + f(memoryMiB, gib)
}

// SizeByClass finds a published class by its name.
func SizeByClass(class string) (billing.Size, bool) {
	for _, s := range Sizes() {
		if s.Class == class {
			return s, true
		}
	}
	return billing.Size{}, false
}

// SizeOf is the size that an instance of this spec holds and is billed for: what the spec reserves, rounded up to the
// first published class with enough of both. An instance that reserves nothing gets the smallest, 0.25 vCPU and
// 0.5 GiB in all.
//
// What a spec reserves is what Kubernetes' scheduler counts, resource by resource (KEP-753): the larger of
//   - the sum of all containers and all sidecars, and
//   - for each init container that ends, its own and that of the sidecars listed before it.
//
// A container reserves its request; without one its limit; without either nothing of its own, it shares what the
// rounding leaves. A limit above the request is a ceiling and not a reservation: the container may use what of the
// instance's size the others leave, and the size is the ceiling of all of them together.
//
// When no class is large enough, Class is "" and the quantities are what was asked for, so that validation can say it.
func SizeOf(spec *Spec) billing.Size {
	return fitSize(reserved(spec, corev1.ResourceCPU), mebibytes(reserved(spec, corev1.ResourceMemory)))
}

func fitSize(milliCPU, memoryMiB int64) billing.Size {
	for _, r := range sizeRows() {
		if r.milliCPU < milliCPU || r.maxMiB < memoryMiB {
			continue
		}
		mem := r.minMiB
		if memoryMiB > mem {
			mem += (memoryMiB - mem + r.stepMiB - 1) / r.stepMiB * r.stepMiB
		}
		return billing.Size{Class: sizeClass(r.milliCPU, mem), MilliCPU: r.milliCPU, MemoryMiB: mem}
	}
	return billing.Size{MilliCPU: milliCPU, MemoryMiB: memoryMiB}
}

// reserved is what a spec reserves of a resource: milli-units of CPU, units of anything else.
func reserved(spec *Spec, name corev1.ResourceName) int64 {
	var sum, sidecars, largestInit int64
	for i := range spec.Containers {
		sum = addSaturated(sum, containerReserves(&spec.Containers[i], name))
	}
	for i := range spec.InitContainers {
		c := &spec.InitContainers[i]
		own := containerReserves(c, name)
		if c.Sidecar() {
			sidecars = addSaturated(sidecars, own)
			continue
		}
		largestInit = max(largestInit, addSaturated(own, sidecars))
	}
	return max(largestInit, addSaturated(sum, sidecars))
}

func containerReserves(c *Container, name corev1.ResourceName) int64 {
	q, ok := c.Resources.Requests[name]
	if !ok {
		q, ok = c.Resources.Limits[name]
	}
	if !ok || q.Sign() <= 0 {
		return 0
	}
	if tooLarge(q) {
		return math.MaxInt64
	}
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// tooLarge tells whether a quantity is beyond everything that exact arithmetic may be done with: it would overflow,
// or with a huge exponent never end.
func tooLarge(q resource.Quantity) bool {
	return !(math.Abs(q.AsApproximateFloat64()) <= 1e15)
}

// Sidecar tells whether an init container keeps running beside the containers.
func (c *Container) Sidecar() bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// mebibytes rounds up.
func mebibytes(bytes int64) int64 {
	return bytes>>20 + min(bytes&(1<<20-1), 1)
}

func addSaturated(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
