package podspec

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"

	"cumulet.io/cis"
	"cumulet.io/internal/problem"
)

// registryAuth collects the credentials of the pod's pull secrets, or of its service account's when it names none. A
// secret that is missing or of no use is a notice: the image may be public.
func (b *Builder) registryAuth(ctx context.Context, pod *corev1.Pod, out *Result) ([]cis.RegistryAuth, error) {
	refs := pod.Spec.ImagePullSecrets
	if len(refs) == 0 && pod.Spec.ServiceAccountName != "" {
		sa, err := b.objs.ServiceAccount(ctx, pod.Namespace, pod.Spec.ServiceAccountName)
		switch {
		case err == nil:
			refs = sa.ImagePullSecrets
		case !errors.Is(err, problem.ErrNotFound):
			return nil, fmt.Errorf("look up service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
		}
	}
	var all []cis.RegistryAuth
	for _, ref := range refs {
		s, err := b.objs.Secret(ctx, pod.Namespace, ref.Name)
		if errors.Is(err, problem.ErrNotFound) {
			out.notice("", "FailedToRetrieveImagePullSecret", "unable to retrieve image pull secret %q; pulling an image may not succeed", ref.Name)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up secret %s/%s: %w", pod.Namespace, ref.Name, err)
		}
		auths, err := parsePullSecret(s)
		if err != nil {
			out.notice("", "FailedToRetrieveImagePullSecret", "image pull secret %q is of no use: %v", ref.Name, err)
			continue
		}
		for _, a := range auths {
			if strings.ContainsAny(a.Server, "*?[") {
				all = append(all, matching(pod, a)...)
			} else {
				all = append(all, a)
			}
		}
	}
	return all, nil
}

type dockerAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Auth     string `json:"auth"`
}

// parsePullSecret reads a kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg secret. Its errors hold nothing of the
// secret's data.
func parsePullSecret(s *corev1.Secret) ([]cis.RegistryAuth, error) {
	var byServer map[string]dockerAuth
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var file struct {
			Auths map[string]dockerAuth `json:"auths"`
		}
		if err := json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			return nil, errors.New(corev1.DockerConfigJsonKey + " is not the JSON that it should be")
		}
		byServer = file.Auths
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(s.Data[corev1.DockerConfigKey], &byServer); err != nil {
			return nil, errors.New(corev1.DockerConfigKey + " is not the JSON that it should be")
		}
	default:
		return nil, fmt.Errorf("its type is %q, not %s", cut(string(s.Type), 80), corev1.SecretTypeDockerConfigJson)
	}
	var all []cis.RegistryAuth
	for _, server := range slices.Sorted(maps.Keys(byServer)) {
		a := byServer[server]
		out := cis.RegistryAuth{Server: registryServer(server), Username: a.Username, Password: a.Password}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\x00"))
			if err != nil {
				return nil, fmt.Errorf("the auth of %s is not base64", cut(out.Server, 80))
			}
			user, password, ok := strings.Cut(string(text), ":")
			if !ok {
				return nil, fmt.Errorf("the auth of %s is not user:password", cut(out.Server, 80))
			}
			out.Username, out.Password = user, strings.TrimRight(password, "\x00")
		}
		if out.Server != "" && (out.Username != "" || out.Password != "") {
			all = append(all, out)
		}
	}
	return all, nil
}

// registryServer brings the ways to write a registry in a Docker configuration to host[:port][/path].
func registryServer(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimRight(s, "/")
	host, rest, _ := strings.Cut(s, "/")
	if rest == "v1" || rest == "v2" {
		rest = ""
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		host = "docker.io"
	}
	if rest != "" {
		return host + "/" + rest
	}
	return host
}

// matching gives a credential whose server has wildcards, as "*.example.com", for each registry that the pod pulls from
// and that it matches: label by label, and by prefix of the path.
func matching(pod *corev1.Pod, a cis.RegistryAuth) []cis.RegistryAuth {
	pattern, prefix, _ := strings.Cut(a.Server, "/")
	var all []cis.RegistryAuth
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			named, err := reference.ParseNormalizedNamed(list[i].Image)
			if err != nil {
				continue // the service refuses the image by name
			}
			host := reference.Domain(named)
			if !hostMatches(pattern, host) || !strings.HasPrefix(reference.Path(named)+"/", prefix) {
				continue
			}
			server := host
			if prefix != "" {
				server += "/" + prefix
			}
			if !slices.ContainsFunc(all, func(x cis.RegistryAuth) bool { return x.Server == server }) {
				all = append(all, cis.RegistryAuth{Server: server, Username: a.Username, Password: a.Password})
			}
		}
	}
	return all
}

func hostMatches(pattern, host string) bool {
	p, h := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(p) != len(h) {
		return false
	}
	for i := range p {
		if ok, err := path.Match(p[i], h[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
