package podspec

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

var update = flag.Bool("update", false, "write testdata/*.want anew; read what has changed")

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is Objects over the documents of a case.
type world struct {
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
	accounts   map[string]*corev1.ServiceAccount
	services   []*corev1.Service
}

func (w *world) ConfigMap(_ context.Context, ns, name string) (*corev1.ConfigMap, error) {
	return find(w.configMaps, ns, name)
}

func (w *world) Secret(_ context.Context, ns, name string) (*corev1.Secret, error) {
	return find(w.secrets, ns, name)
}

func (w *world) ServiceAccount(_ context.Context, ns, name string) (*corev1.ServiceAccount, error) {
	return find(w.accounts, ns, name)
}

func find[T any](m map[string]*T, ns, name string) (*T, error) {
	if o := m[ns+"/"+name]; o != nil {
		return o, nil
	}
	return nil, problem.New(problem.ErrNotFound, "no %s/%s", ns, name)
}

func (w *world) Services(_ context.Context, ns string) (all []*corev1.Service, err error) {
	for _, s := range w.services {
		if s.Namespace == ns {
			all = append(all, s)
		}
	}
	return all, nil
}

func (w *world) Token(_ context.Context, pod *corev1.Pod, audience string, seconds int64) (Token, error) {
	return Token{Value: fmt.Sprintf("token-of-%s-for-%q", pod.Spec.ServiceAccountName, audience), RefreshAt: epoch.Add(time.Duration(seconds) * 8 / 10 * time.Second)}, nil
}

// load reads a case: a pod and the objects of its world, in a file of several documents.
func load(t testing.TB, file string) (*corev1.Pod, *world) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}, accounts: map[string]*corev1.ServiceAccount{}}
	var pod *corev1.Pod
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &meta); err != nil {
			t.Fatal(err)
		}
		read := func(o metav1.Object) string {
			if err := yaml.UnmarshalStrict(doc, o); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			return o.GetNamespace() + "/" + o.GetName()
		}
		switch meta.Kind {
		case "Pod":
			pod = &corev1.Pod{}
			read(pod)
		case "ConfigMap":
			o := &corev1.ConfigMap{}
			w.configMaps[read(o)] = o
		case "Secret":
			o := &corev1.Secret{}
			k := read(o)
			for key, v := range o.StringData {
				if o.Data == nil {
					o.Data = map[string][]byte{}
				}
				o.Data[key] = []byte(v)
			}
			w.secrets[k] = o
		case "ServiceAccount":
			o := &corev1.ServiceAccount{}
			w.accounts[read(o)] = o
		case "Service":
			o := &corev1.Service{}
			read(o)
			w.services = append(w.services, o)
		default:
			t.Fatalf("%s: kind %q", file, meta.Kind)
		}
	}
	return pod, w
}

func settings() Settings {
	return Settings{
		Node: "vnode", ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local",
		HostDNS:     cis.DNS{Servers: []string{"192.0.2.53"}, Searches: []string{"corp.example"}, Options: []string{"timeout:2"}},
		Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100"), corev1.ResourceMemory: resource.MustParse("1Ti")},
	}
}

// readable shows a result as text: the spec as YAML with files as text.
func readable(t testing.TB, r *Result) string {
	t.Helper()
	spec := r.Spec
	spec.Volumes = nil
	text, err := yaml.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	out.Write(text)
	for _, v := range r.Spec.Volumes {
		switch {
		case v.EmptyDir != nil:
			fmt.Fprintf(&out, "volume %s: emptyDir memory=%v limit=%d\n", v.Name, v.EmptyDir.Memory, v.EmptyDir.SizeLimitBytes)
		case v.Files != nil:
			fmt.Fprintf(&out, "volume %s: files secret=%v\n", v.Name, v.Files.Secret)
			for _, f := range v.Files.Files {
				fmt.Fprintf(&out, "  %s %04o %q\n", f.Path, f.Mode, f.Data)
			}
		}
	}
	for _, n := range r.Notices {
		fmt.Fprintf(&out, "notice %s %s: %s\n", n.Container, n.Reason, n.Message)
	}
	if !r.RefreshAt.IsZero() {
		fmt.Fprintf(&out, "refresh after %v\n", r.RefreshAt.Sub(epoch))
	}
	return out.String()
}

func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			pod, w := load(t, file)
			before := pod.DeepCopy()
			var got string
			r, err := New(settings(), w).Build(context.Background(), pod)
			var refused *RefusedError
			var missing *MissingError
			switch {
			case errors.As(err, &refused):
				for _, f := range refused.Fields {
					got += "refused " + f.Path + ": " + f.Why + "\n"
				}
			case errors.As(err, &missing):
				got = "missing: " + err.Error() + "\n"
			case err != nil:
				t.Fatal(err)
			default:
				got = readable(t, r)
				if err := cis.ValidateCreate(&cis.CreateRequest{Key: "k", Spec: r.Spec}); err != nil {
					t.Errorf("the service would refuse this: %v", err)
				}
			}
			if !reflect.DeepEqual(before, pod) {
				t.Error("the pod was changed")
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".want"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}
