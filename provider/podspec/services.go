package podspec

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// serviceEnv gives the variables by which a container finds services: those of its namespace, unless the pod does not want
// them, and always the API server's.
func (b *Builder) serviceEnv(ctx context.Context, pod *corev1.Pod) (map[string]string, error) {
	env := map[string]string{}
	master, err := b.objs.Services(ctx, corev1.NamespaceDefault)
	if err != nil {
		return nil, fmt.Errorf("list services of %s: %w", corev1.NamespaceDefault, err)
	}
	for _, s := range master {
		if s.Name == "kubernetes" {
			addService(env, s)
		}
	}
	if pod.Spec.EnableServiceLinks != nil && !*pod.Spec.EnableServiceLinks {
		return env, nil
	}
	own, err := b.objs.Services(ctx, pod.Namespace)
	if err != nil {
		return nil, fmt.Errorf("list services of %s: %w", pod.Namespace, err)
	}
	own = slices.Clone(own)
	slices.SortFunc(own, func(x, y *corev1.Service) int { return strings.Compare(x.Name, y.Name) })
	for _, s := range own {
		addService(env, s)
	}
	return env, nil
}

// addService adds NAME_SERVICE_HOST, NAME_SERVICE_PORT and the variables of Docker's links.
func addService(env map[string]string, s *corev1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	name := envName(s.Name)
	env[name+"_SERVICE_HOST"] = ip
	env[name+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port := strconv.Itoa(int(p.Port))
		if p.Name != "" {
			env[name+"_SERVICE_PORT_"+envName(p.Name)] = port
		}
		proto := string(p.Protocol)
		if proto == "" {
			proto = string(corev1.ProtocolTCP)
		}
		url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, port)
		prefix := name + "_PORT_" + port + "_" + strings.ToUpper(proto)
		if i == 0 {
			env[name+"_PORT"] = url
		}
		env[prefix] = url
		env[prefix+"_PROTO"] = strings.ToLower(proto)
		env[prefix+"_PORT"] = port
		env[prefix+"_ADDR"] = ip
	}
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
