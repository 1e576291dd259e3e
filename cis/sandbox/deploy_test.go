package sandbox

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"sigs.k8s.io/yaml"

	"cumulet.io/cis"
)

// The landing clusters' RuntimeClasses have the handlers and the overhead that this package has.
func TestRuntimeClasses(t *testing.T) {
	text, err := os.ReadFile("../../deploy/kata/runtimeclasses.yaml")
	if err != nil {
		t.Fatal(err)
	}
	smallest := cis.Sizes()[0]
	want := map[string]cis.SandboxClass{KataHandler("qemu"): cis.Kata, KataHandler("clh"): cis.Kata, KataHandler("fc"): cis.Kata, Handler(cis.GVisor): cis.GVisor}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var rc nodev1.RuntimeClass
		if err := yaml.UnmarshalStrict([]byte(doc), &rc); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if rc.Kind != "RuntimeClass" || rc.APIVersion != nodev1.SchemeGroupVersion.String() {
			t.Errorf("%s is a %s of %s", rc.Name, rc.Kind, rc.APIVersion)
		}
		class, ok := want[rc.Handler]
		if !ok {
			t.Errorf("%s: the handler %q is nobody's", rc.Name, rc.Handler)
			continue
		}
		delete(want, rc.Handler)
		o := OverheadOf(class, smallest)
		cpu, memory := rc.Overhead.PodFixed[corev1.ResourceCPU], rc.Overhead.PodFixed[corev1.ResourceMemory]
		if cpu.MilliValue() != o.MilliCPU || memory.Value() != o.MemoryMiB<<20 {
			t.Errorf("%s: overhead %s and %s, want %dm and %d MiB", rc.Name, cpu.String(), memory.String(), o.MilliCPU, o.MemoryMiB)
		}
		if len(rc.Scheduling.NodeSelector) != 1 {
			t.Errorf("%s: %v", rc.Name, rc.Scheduling)
		}
	}
	if len(want) > 0 {
		t.Errorf("no RuntimeClass has the handlers %v", want)
	}
}

// A node's drop-in has for each hypervisor what cisd's own containerd gets.
func TestNodeDropIn(t *testing.T) {
	const place = "../../deploy/kata/config.d/20-cumulet.toml"
	text, err := os.ReadFile(place)
	if err != nil {
		t.Fatal(err)
	}
	own, err := KataDropIn(KataConfig{Hypervisor: "qemu"}, KataOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var node, all map[string]any
	if err := errors.Join(toml.Unmarshal(text, &node), toml.Unmarshal(own, &all)); err != nil {
		t.Fatal(err)
	}
	delete(all, "hypervisor")
	if !reflect.DeepEqual(node, all) {
		t.Errorf("%s has %v, cisd's own %v", place, node, all)
	}
}
