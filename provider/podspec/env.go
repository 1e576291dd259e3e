package podspec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// environment is a container's variables in the order in which they got their values. Names are unique.
type environment struct {
	order  []string
	values map[string]cis.EnvVar
	// used are runtime values that another variable refers to; they cannot be given another value.
	used map[string]bool
}

func (e *environment) set(path string, v cis.EnvVar) error {
	if _, ok := e.values[v.Name]; ok {
		if e.used[v.Name] {
			return refuse(path, "gives %s another value after a variable has referred to the first", v.Name)
		}
		e.order = slices.DeleteFunc(e.order, func(n string) bool { return n == v.Name })
	}
	e.order = append(e.order, v.Name)
	e.values[v.Name] = v
	return nil
}

func (e *environment) list() []cis.EnvVar {
	out := make([]cis.EnvVar, 0, len(e.order))
	for _, n := range e.order {
		out = append(out, e.values[n])
	}
	return out
}

// env resolves a container's environment as the kubelet does: envFrom, then env with references to what is before it, then
// the service variables that neither has.
func (b *Builder) env(ctx context.Context, pod *corev1.Pod, c *corev1.Container, path string, services map[string]string, out *Result) (*environment, error) {
	e := &environment{values: map[string]cis.EnvVar{}, used: map[string]bool{}}
	for i, from := range c.EnvFrom {
		if err := b.envFrom(ctx, pod, c, fmt.Sprintf("%s.envFrom[%d]", path, i), from, e, out); err != nil {
			return nil, err
		}
	}
	for i, v := range c.Env {
		at := fmt.Sprintf("%s.env[%d]", path, i)
		resolved, ok, err := b.envVar(ctx, pod, c, at, v, e, services)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if err := e.set(at, resolved); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if _, ok := e.values[name]; !ok {
			if err := e.set(path, cis.EnvVar{Name: name, Value: services[name]}); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

func (b *Builder) envFrom(ctx context.Context, pod *corev1.Pod, c *corev1.Container, path string, from corev1.EnvFromSource, e *environment, out *Result) error {
	data := map[string]string{}
	var kind, name string
	switch {
	case from.ConfigMapRef != nil:
		kind, name = "configmap", from.ConfigMapRef.Name
		cm, err := b.objs.ConfigMap(ctx, pod.Namespace, name)
		if err != nil {
			return b.missing(err, is(from.ConfigMapRef.Optional), MissingError{Kind: kind, Namespace: pod.Namespace, Name: name, Container: c.Name})
		}
		data = cm.Data
	case from.SecretRef != nil:
		kind, name = "secret", from.SecretRef.Name
		s, err := b.objs.Secret(ctx, pod.Namespace, name)
		if err != nil {
			return b.missing(err, is(from.SecretRef.Optional), MissingError{Kind: kind, Namespace: pod.Namespace, Name: name, Container: c.Name})
		}
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	var invalid []string
	for _, k := range slices.Sorted(maps.Keys(data)) {
		full := from.Prefix + k
		if len(validation.IsRelaxedEnvVarName(full)) > 0 {
			invalid = append(invalid, k)
			continue
		}
		if err := e.set(path, cis.EnvVar{Name: full, Value: data[k], Secret: kind == "secret"}); err != nil {
			return err
		}
	}
	if len(invalid) > 0 {
		out.notice(c.Name, "InvalidEnvironmentVariableNames",
			"keys [%s] of %s %s/%s were left out: they are no names of environment variables", cut(strings.Join(invalid, ", "), 512), kind, pod.Namespace, name)
	}
	return nil
}

// missing turns a look-up's error into nil (optional), a MissingError, or an error that says what failed.
func (b *Builder) missing(err error, optional bool, m MissingError) error {
	if !errors.Is(err, problem.ErrNotFound) {
		return fmt.Errorf("look up %s %s/%s: %w", m.Kind, m.Namespace, m.Name, err)
	}
	if optional {
		return nil
	}
	return &m
}

func is(p *bool) bool { return p != nil && *p }

// envVar resolves one variable. ok is false when it is optional and its source is not there.
func (b *Builder) envVar(ctx context.Context, pod *corev1.Pod, c *corev1.Container, path string, v corev1.EnvVar, e *environment, services map[string]string) (cis.EnvVar, bool, error) {
	out := cis.EnvVar{Name: v.Name}
	if v.Value != "" || v.ValueFrom == nil {
		out.Value, out.Expand, out.Secret = e.expand(v.Value, services)
		return out, true, nil
	}
	from := v.ValueFrom
	var err error
	switch {
	case from.FieldRef != nil:
		out.Value, out.Field, err = fieldValue(pod, path+".valueFrom.fieldRef", from.FieldRef.FieldPath)
	case from.ResourceFieldRef != nil:
		out.Value, err = b.resourceValue(pod, c, path+".valueFrom.resourceFieldRef", from.ResourceFieldRef)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m := MissingError{Kind: "configmap", Namespace: pod.Namespace, Name: ref.Name, Container: c.Name}
		cm, err := b.objs.ConfigMap(ctx, pod.Namespace, ref.Name)
		if err != nil {
			return out, false, b.missing(err, is(ref.Optional), m)
		}
		value, ok := cm.Data[ref.Key]
		if !ok {
			m.Key = ref.Key
			return out, false, b.missing(problem.ErrNotFound, is(ref.Optional), m)
		}
		out.Value = value
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		m := MissingError{Kind: "secret", Namespace: pod.Namespace, Name: ref.Name, Container: c.Name}
		s, err := b.objs.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			return out, false, b.missing(err, is(ref.Optional), m)
		}
		value, ok := s.Data[ref.Key]
		if !ok {
			m.Key = ref.Key
			return out, false, b.missing(problem.ErrNotFound, is(ref.Optional), m)
		}
		out.Value, out.Secret = string(value), true
	default:
		return out, false, refuse(path+".valueFrom", "has no source")
	}
	return out, err == nil, err
}

// expand resolves the references of a value. When one of them is known only when the sandbox is up, the result is a
// template for then.
func (e *environment) expand(s string, services map[string]string) (value string, later, secret bool) {
	for _, name := range cis.References(s) {
		v, ok := e.values[name]
		secret = secret || ok && v.Secret
		if ok && (v.Field != "" || v.Expand) {
			later = true
			e.used[name] = true
		}
	}
	if !later {
		return cis.Expand(s, func(name string) (string, bool) {
			if v, ok := e.values[name]; ok {
				return v.Value, true
			}
			v, ok := services[name]
			return v, ok
		}), false, secret
	}
	return cis.ExpandTemplate(s, func(name string) (string, bool) {
		v, ok := e.values[name]
		switch {
		case !ok:
			sv, ok := services[name]
			return cis.EscapeTemplate(sv), ok
		case v.Field != "" || v.Expand:
			return "$(" + name + ")", true
		}
		return cis.EscapeTemplate(v.Value), true
	}), true, secret
}
