package podspec

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

const (
	defaultFileMode     = 0o644
	defaultTokenSeconds = 3600
)

// Volumes resolves the files of a pod's volumes again, for an instance that runs: what a ConfigMap, a Secret, the pod's
// labels or a token are now. refreshAt and the errors are as Build's.
func (b *Builder) Volumes(ctx context.Context, pod *corev1.Pod) (files map[string]cis.FilesVolume, refreshAt time.Time, err error) {
	all, refreshAt, err := b.volumes(ctx, pod)
	if err != nil {
		return nil, time.Time{}, err
	}
	files = map[string]cis.FilesVolume{}
	for _, v := range all {
		if v.Files != nil {
			files[v.Name] = *v.Files
		}
	}
	return files, refreshAt, nil
}

// Uses tells whether a pod's environment or volumes refer to a ConfigMap ("configmap") or Secret ("secret").
func Uses(pod *corev1.Pod, kind, name string) bool {
	for _, v := range pod.Spec.Volumes {
		if volumeUses(&v, kind, name) {
			return true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if envUses(&list[i], kind, name) {
				return true
			}
		}
	}
	return false
}

func volumeUses(v *corev1.Volume, kind, name string) bool {
	cm, secret := kind == "configmap", kind == "secret"
	switch {
	case v.ConfigMap != nil:
		return cm && v.ConfigMap.Name == name
	case v.Secret != nil:
		return secret && v.Secret.SecretName == name
	case v.Projected != nil:
		return slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool {
			return cm && p.ConfigMap != nil && p.ConfigMap.Name == name || secret && p.Secret != nil && p.Secret.Name == name
		})
	}
	return false
}

func envUses(c *corev1.Container, kind, name string) bool {
	cm, secret := kind == "configmap", kind == "secret"
	return slices.ContainsFunc(c.EnvFrom, func(f corev1.EnvFromSource) bool {
		return cm && f.ConfigMapRef != nil && f.ConfigMapRef.Name == name || secret && f.SecretRef != nil && f.SecretRef.Name == name
	}) || slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool {
		f := v.ValueFrom
		return f != nil && (cm && f.ConfigMapKeyRef != nil && f.ConfigMapKeyRef.Name == name || secret && f.SecretKeyRef != nil && f.SecretKeyRef.Name == name)
	})
}

func (b *Builder) volumes(ctx context.Context, pod *corev1.Pod) ([]cis.Volume, time.Time, error) {
	var all []cis.Volume
	var refreshAt time.Time
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		out := cis.Volume{Name: v.Name}
		path := fmt.Sprintf("spec.volumes[%d]", i)
		if v.EmptyDir != nil || v.VolumeSource == (corev1.VolumeSource{}) {
			out.EmptyDir = emptyDir(v.EmptyDir)
			all = append(all, out)
			continue
		}
		f := &files{b: b, ctx: ctx, pod: pod, volume: v.Name, byPath: map[string]cis.File{}}
		if err := f.source(path, v); err != nil {
			return nil, time.Time{}, err
		}
		out.Files = f.done()
		if at := f.refreshAt; !at.IsZero() && (refreshAt.IsZero() || at.Before(refreshAt)) {
			refreshAt = at
		}
		all = append(all, out)
	}
	return all, refreshAt, nil
}

func emptyDir(e *corev1.EmptyDirVolumeSource) *cis.EmptyDir {
	out := &cis.EmptyDir{}
	if e != nil {
		out.Memory = e.Medium == corev1.StorageMediumMemory
		if e.SizeLimit != nil {
			out.SizeLimitBytes = e.SizeLimit.Value()
		}
	}
	return out
}

// files collects the files of one volume; a later source wins a path.
type files struct {
	b         *Builder
	ctx       context.Context //nolint:containedctx // lives for one call
	pod       *corev1.Pod
	volume    string
	byPath    map[string]cis.File
	secret    bool
	refreshAt time.Time
}

func (f *files) done() *cis.FilesVolume {
	out := &cis.FilesVolume{Secret: f.secret, Files: []cis.File{}}
	for _, p := range slices.Sorted(maps.Keys(f.byPath)) {
		out.Files = append(out.Files, f.byPath[p])
	}
	return out
}

func (f *files) add(path string, mode int32, data []byte) {
	f.byPath[path] = cis.File{Path: path, Mode: mode, Data: data}
}

func modeOr(mode *int32, other int32) int32 {
	if mode != nil {
		return *mode
	}
	return other
}

func (f *files) source(path string, v *corev1.Volume) error {
	switch {
	case v.ConfigMap != nil:
		return f.configMap(v.ConfigMap.Name, v.ConfigMap.Items, modeOr(v.ConfigMap.DefaultMode, defaultFileMode), is(v.ConfigMap.Optional))
	case v.Secret != nil:
		return f.secretFiles(v.Secret.SecretName, v.Secret.Items, modeOr(v.Secret.DefaultMode, defaultFileMode), is(v.Secret.Optional))
	case v.DownwardAPI != nil:
		return f.downward(path+".downwardAPI", v.DownwardAPI.Items, modeOr(v.DownwardAPI.DefaultMode, defaultFileMode))
	case v.Projected != nil:
		mode := modeOr(v.Projected.DefaultMode, defaultFileMode)
		for i, p := range v.Projected.Sources {
			if err := f.projection(fmt.Sprintf("%s.projected.sources[%d]", path, i), p, mode); err != nil {
				return err
			}
		}
		return nil
	}
	return refuse(path, "has no source that is supported")
}

func (f *files) projection(path string, p corev1.VolumeProjection, mode int32) error {
	switch {
	case p.ConfigMap != nil:
		return f.configMap(p.ConfigMap.Name, p.ConfigMap.Items, mode, is(p.ConfigMap.Optional))
	case p.Secret != nil:
		return f.secretFiles(p.Secret.Name, p.Secret.Items, mode, is(p.Secret.Optional))
	case p.DownwardAPI != nil:
		return f.downward(path+".downwardAPI", p.DownwardAPI.Items, mode)
	case p.ServiceAccountToken != nil:
		seconds := int64(defaultTokenSeconds)
		if e := p.ServiceAccountToken.ExpirationSeconds; e != nil {
			seconds = *e
		}
		token, err := f.b.objs.Token(f.ctx, f.pod, p.ServiceAccountToken.Audience, seconds)
		if err != nil {
			m := MissingError{Kind: "serviceaccount", Namespace: f.pod.Namespace, Name: f.pod.Spec.ServiceAccountName, Volume: f.volume}
			return f.b.missing(err, false, m)
		}
		if at := token.RefreshAt; f.refreshAt.IsZero() || at.Before(f.refreshAt) {
			f.refreshAt = at
		}
		f.secret = true
		f.add(p.ServiceAccountToken.Path, mode, []byte(token.Value))
		return nil
	}
	return refuse(path, "has no source that is supported")
}

func (f *files) configMap(name string, items []corev1.KeyToPath, mode int32, optional bool) error {
	m := MissingError{Kind: "configmap", Namespace: f.pod.Namespace, Name: name, Volume: f.volume}
	cm, err := f.b.objs.ConfigMap(f.ctx, f.pod.Namespace, name)
	if err != nil {
		return f.b.missing(err, optional, m)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, cm.BinaryData)
	return f.keys(data, items, mode, optional, m)
}

func (f *files) secretFiles(name string, items []corev1.KeyToPath, mode int32, optional bool) error {
	f.secret = true
	m := MissingError{Kind: "secret", Namespace: f.pod.Namespace, Name: name, Volume: f.volume}
	s, err := f.b.objs.Secret(f.ctx, f.pod.Namespace, name)
	if err != nil {
		return f.b.missing(err, optional, m)
	}
	return f.keys(s.Data, items, mode, optional, m)
}

// keys adds all keys, or those that items name.
func (f *files) keys(data map[string][]byte, items []corev1.KeyToPath, mode int32, optional bool, m MissingError) error {
	if len(items) == 0 {
		for k, v := range data {
			f.add(k, mode, v)
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			missing := m
			missing.Key = it.Key
			if err := f.b.missing(problem.ErrNotFound, optional, missing); err != nil {
				return err
			}
			continue
		}
		f.add(it.Path, modeOr(it.Mode, mode), v)
	}
	return nil
}

func (f *files) downward(path string, items []corev1.DownwardAPIVolumeFile, mode int32) error {
	for i, it := range items {
		at := fmt.Sprintf("%s.items[%d]", path, i)
		var value string
		switch {
		case it.FieldRef != nil:
			v, runtime, err := fieldValue(f.pod, at+".fieldRef", it.FieldRef.FieldPath)
			if err != nil {
				return err
			}
			if runtime != "" || strings.HasPrefix(it.FieldRef.FieldPath, "spec.") {
				return refuse(at+".fieldRef.fieldPath", "%q is not supported in a volume", it.FieldRef.FieldPath)
			}
			value = v
		case it.ResourceFieldRef != nil:
			v, err := f.b.resourceValue(f.pod, nil, at+".resourceFieldRef", it.ResourceFieldRef)
			if err != nil {
				return err
			}
			value = v
		default:
			return refuse(at, "has no source")
		}
		f.add(it.Path, modeOr(it.Mode, mode), []byte(value))
	}
	return nil
}
