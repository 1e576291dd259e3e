package podspec

import (
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxRefused bounds the fields that one refusal names.
const maxRefused = 20

// rule says what becomes of a field that is set.
type rule struct {
	// walk goes on into the value: a struct, or pointers to and slices of structs.
	walk bool
	// why refuses the field: what the user is told. "" accepts it.
	why string
	// check decides by the value, "" accepts it. path is where the value is.
	check func(path string, v reflect.Value) string
}

// table has a rule for every field of every struct that a pod's spec reaches and that is not accepted whole. A field
// that it does not know is refused: so a field of a later API version is never dropped in silence.
type table map[reflect.Type]map[string]rule

// check lists the fields of a pod that are set and cannot be honoured, in the spec's order.
func (t table) check(pod *corev1.Pod) []Field {
	w := walker{table: t}
	w.value("spec", reflect.ValueOf(pod.Spec))
	return w.refused
}

type walker struct {
	table   table
	refused []Field
}

func (w *walker) refuse(path, why string) {
	if len(w.refused) < maxRefused {
		w.refused = append(w.refused, Field{Path: path, Why: why})
	}
}

func (w *walker) value(path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			w.value(path, v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			w.value(fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case reflect.Struct:
		w.fields(path, v)
	default:
		w.refuse(path, "is not supported")
	}
}

func (w *walker) fields(path string, v reflect.Value) {
	rules := w.table[v.Type()]
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if unset(v.Field(i)) {
			continue
		}
		at := path
		if name := jsonName(f); name != "" {
			at += "." + name
		}
		r, ok := rules[f.Name]
		switch {
		case !ok:
			w.refuse(at, "is not known to this node, and so not supported")
		case r.check != nil:
			if why := r.check(at, v.Field(i)); why != "" {
				w.refuse(at, why)
			}
		case r.walk:
			w.value(at, v.Field(i))
		case r.why != "":
			w.refuse(at, r.why)
		}
	}
}

// unset takes empty lists and maps for absent, as the API does.
func unset(v reflect.Value) bool {
	if k := v.Kind(); k == reflect.Slice || k == reflect.Map {
		return v.Len() == 0
	}
	return v.IsZero()
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
