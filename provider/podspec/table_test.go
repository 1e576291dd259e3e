package podspec

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestEveryFieldHasARule fails when a type that a pod's spec is walked through has a field without a rule, or a rule without a
// field: whoever takes a newer API decides what becomes of each new field.
func TestEveryFieldHasARule(t *testing.T) {
	rules := rules()
	seen := map[reflect.Type]bool{}
	var visit func(typ reflect.Type, path string)
	visit = func(typ reflect.Type, path string) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			t.Errorf("%s: %v cannot be walked", path, typ)
			return
		}
		if seen[typ] {
			return
		}
		seen[typ] = true
		known, ok := rules[typ]
		if !ok {
			t.Errorf("%s: no rules for %v", path, typ)
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			r, ok := known[f.Name]
			if !ok {
				t.Errorf("%s: no rule for %v.%s", path, typ, f.Name)
			}
			if r.walk {
				visit(f.Type, path+"."+jsonName(f))
			}
		}
		for name := range known {
			if _, ok := typ.FieldByName(name); !ok {
				t.Errorf("%v has no field %s", typ, name)
			}
		}
	}
	visit(reflect.TypeFor[corev1.PodSpec](), "spec")
	for typ := range rules {
		if !seen[typ] {
			t.Errorf("%v has rules and is not reached", typ)
		}
	}
	for _, must := range []reflect.Type{reflect.TypeFor[corev1.Container](), reflect.TypeFor[corev1.VolumeSource](), reflect.TypeFor[corev1.SecurityContext]()} {
		if !seen[must] {
			t.Errorf("%v is not walked", must)
		}
	}
}

// TestUnknownFieldsAreRefused takes the rules of every field away in turn: the field must then be refused by its name.
func TestUnknownFieldsAreRefused(t *testing.T) {
	for _, typ := range []reflect.Type{reflect.TypeFor[corev1.PodSpec](), reflect.TypeFor[corev1.Container]()} {
		for i := range typ.NumField() {
			f := typ.Field(i)
			rules := rules()
			delete(rules[typ], f.Name)
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
			target, path := reflect.ValueOf(&pod.Spec).Elem(), "spec."
			if typ == reflect.TypeFor[corev1.Container]() {
				target, path = target.FieldByName("Containers").Index(0), "spec.containers[0]."
			}
			fill(target.Field(i))
			found := false
			for _, r := range rules.check(pod) {
				found = found || r.Path == path+jsonName(f) && strings.Contains(r.Why, "not known")
			}
			if !found {
				t.Errorf("%s%s is not refused when it is unknown: %v", path, jsonName(f), rules.check(pod))
			}
		}
	}
}

// fill gives a field a value that is not its zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem())
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Struct:
		fill(v.Field(0))
	default:
		v.SetInt(1)
	}
}

func FuzzPullSecret(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`), true)
	f.Add([]byte(`{"*.example.com":{"username":"u","password":"p"}}`), false)
	f.Fuzz(func(t *testing.T, data []byte, json bool) {
		s := &corev1.Secret{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: data}}
		if json {
			s = &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: data}}
		}
		all, err := parsePullSecret(s)
		for _, a := range all {
			if a.Server == "" || err != nil {
				t.Fatalf("%+v, %v", a, err)
			}
		}
	})
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 1.1.1.1\nsearch a b\noptions ndots:5 # x\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseResolvConf(strings.NewReader(text))
		if err == nil && len(d.Servers) > len(text) {
			t.Fatal("more servers than text")
		}
	})
}
