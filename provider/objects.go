package provider

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1listers "k8s.io/client-go/listers/core/v1"

	"cumulet.io/internal/problem"
	"cumulet.io/provider/podspec"
)

// Objects is podspec.Objects over listers, and over the API server for what a lister does not have (yet). Safe for concurrent
// use.
type Objects struct {
	Client          kubernetes.Interface
	ConfigMaps      corev1listers.ConfigMapLister
	Secrets         corev1listers.SecretLister
	ServiceAccounts corev1listers.ServiceAccountLister
	ServiceLister   corev1listers.ServiceLister

	mu     sync.Mutex
	tokens map[tokenKey]podspec.Token
}

type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

// maxTokens bounds the tokens that are kept to be given again.
const maxTokens = 50_000

var _ podspec.Objects = (*Objects)(nil)

// ConfigMap implements podspec.Objects.
func (o *Objects) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	cm, err := o.ConfigMaps.ConfigMaps(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		cm, err = o.Client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	return cm, asProblem(err)
}

// Secret implements podspec.Objects.
func (o *Objects) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	s, err := o.Secrets.Secrets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		s, err = o.Client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	return s, asProblem(err)
}

// ServiceAccount implements podspec.Objects.
func (o *Objects) ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	sa, err := o.ServiceAccounts.ServiceAccounts(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		sa, err = o.Client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	return sa, asProblem(err)
}

// Services implements podspec.Objects.
func (o *Objects) Services(_ context.Context, namespace string) ([]*corev1.Service, error) {
	all, err := o.ServiceLister.Services(namespace).List(labels.Everything())
	return all, asProblem(err)
}

// Token implements podspec.Objects: by TokenRequest, bound to the pod. A token is given again until 80% of its life are over.
func (o *Objects) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (podspec.Token, error) {
	k := tokenKey{pod: pod.UID, audience: audience, seconds: seconds}
	now := time.Now()
	o.mu.Lock()
	t, ok := o.tokens[k]
	o.mu.Unlock()
	if ok && now.Before(t.RefreshAt) {
		return t, nil
	}
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	answer, err := o.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		return podspec.Token{}, fmt.Errorf("token of service account %s/%s: %w", pod.Namespace, account, asProblem(err))
	}
	life := answer.Status.ExpirationTimestamp.Sub(now)
	t = podspec.Token{Value: answer.Status.Token, RefreshAt: now.Add(life * 8 / 10)}
	if t.Value == "" || life <= 0 {
		return podspec.Token{}, errors.New("the API server answered a token request with no valid token")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tokens == nil {
		o.tokens = map[tokenKey]podspec.Token{}
	}
	if len(o.tokens) >= maxTokens {
		o.prune(now)
	}
	o.tokens[k] = t
	return t, nil
}

// prune drops tokens that are too old to be given again, and all of them if that is not enough. The caller holds the lock.
func (o *Objects) prune(now time.Time) {
	for k, t := range o.tokens {
		if !now.Before(t.RefreshAt) {
			delete(o.tokens, k)
		}
	}
	if len(o.tokens) >= maxTokens {
		clear(o.tokens)
	}
}

// asProblem turns the API server's errors into the platform's classes.
func asProblem(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return &problem.Error{Class: problem.ErrNotFound, Detail: err.Error()}
	case apierrors.IsForbidden(err):
		return &problem.Error{Class: problem.ErrForbidden, Detail: err.Error()}
	}
	return err
}
