package podspec

import (
	"context"
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
)

// containers converts a list of containers; list is its name in the pod's spec.
func (b *Builder) containers(ctx context.Context, pod *corev1.Pod, list string, in []corev1.Container, services map[string]string, out *Result) ([]cis.Container, error) {
	var all []cis.Container
	for i := range in {
		c := &in[i]
		at := fmt.Sprintf("spec.%s[%d]", list, i)
		env, err := b.env(ctx, pod, c, at, services, out)
		if err != nil {
			return nil, err
		}
		mounts, err := mounts(c, at, env, services)
		if err != nil {
			return nil, err
		}
		c = c.DeepCopy()
		all = append(all, cis.Container{
			Name: c.Name, Image: c.Image, ImagePullPolicy: c.ImagePullPolicy,
			Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir,
			Env: env.list(), Ports: c.Ports, Mounts: mounts,
			Resources:    corev1.ResourceRequirements{Limits: c.Resources.Limits, Requests: c.Resources.Requests},
			StartupProbe: c.StartupProbe, ReadinessProbe: c.ReadinessProbe, LivenessProbe: c.LivenessProbe,
			Lifecycle: c.Lifecycle, SecurityContext: c.SecurityContext, RestartPolicy: c.RestartPolicy,
			TerminationMessagePath: c.TerminationMessagePath, TerminationMessagePolicy: c.TerminationMessagePolicy,
			TTY: c.TTY, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
		})
	}
	return all, nil
}

func mounts(c *corev1.Container, at string, env *environment, services map[string]string) ([]cis.Mount, error) {
	var all []cis.Mount
	for i, m := range c.VolumeMounts {
		sub := m.SubPath
		if m.SubPathExpr != "" {
			field := fmt.Sprintf("%s.volumeMounts[%d].subPathExpr", at, i)
			for _, name := range cis.References(m.SubPathExpr) {
				_, own := env.values[name]
				_, service := services[name]
				if !own && !service {
					return nil, refuse(field, "refers to %s, which is not a variable of the container", cut(name, 80))
				}
			}
			var later bool
			if sub, later, _ = env.expand(m.SubPathExpr, services); later {
				return nil, refuse(field, "refers to an address of the pod, which is not known before its volumes are")
			}
			if clean := path.Clean(sub); path.IsAbs(sub) || clean == ".." || strings.HasPrefix(clean, "../") || strings.Contains("/"+sub+"/", "/../") {
				return nil, refuse(field, "must give a path inside the volume")
			}
		}
		if sub != "" {
			if sub = path.Clean(sub); sub == "." {
				sub = ""
			}
		}
		all = append(all, cis.Mount{Volume: m.Name, Path: m.MountPath, SubPath: sub, ReadOnly: m.ReadOnly})
	}
	return all, nil
}
