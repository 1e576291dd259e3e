package provider_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"cumulet.io/provider/internal/testservice"
)

// A pod whose token cannot be had waits, and says why, until it can.
func TestATokenThatMayNotBeHad(t *testing.T) {
	r := newRig(t)
	var allowed atomic.Bool
	r.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" {
			return false, nil, nil
		}
		if !allowed.Load() {
			return true, nil, apierrors.NewForbidden(corev1.Resource("serviceaccounts/token"), "default", errors.New("the node may not"))
		}
		return true, &authv1.TokenRequest{Status: authv1.TokenRequestStatus{Token: "t", ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Hour))}}, nil
	})
	r.up()
	r.create(newPod("web", testservice.ImageRuns, func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "identity", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}}
	}))
	r.event("token of service account shop/default: forbidden")
	pod := r.pod("web", func(p *corev1.Pod) bool { return len(p.Status.ContainerStatuses) > 0 })
	if w := pod.Status.ContainerStatuses[0].State.Waiting; pod.Status.Phase != corev1.PodPending || w == nil || w.Reason != "CreateContainerConfigError" {
		t.Errorf("%+v", pod.Status)
	}
	allowed.Store(true)
	r.pod("web", phase(corev1.PodRunning))
}

// TestTokenAges: an instance gets a new service-account token when 80% of the old one's life are over, again and again,
// and not before.
func TestTokenAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 10 * time.Minute
		r := newRig(t)
		r.reconcile = 30 * time.Second
		var made atomic.Int32
		r.client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if a.GetSubresource() != "token" {
				return false, nil, nil
			}
			req := a.(clienttesting.CreateAction).GetObject().(*authv1.TokenRequest)
			if req.Spec.BoundObjectRef == nil || req.Spec.BoundObjectRef.UID != "uid-aged" || *req.Spec.ExpirationSeconds != int64(life.Seconds()) {
				t.Errorf("token request %+v", req.Spec)
			}
			return true, &authv1.TokenRequest{Status: authv1.TokenRequestStatus{
				Token: fmt.Sprint("token-", made.Add(1)), ExpirationTimestamp: metav1.NewTime(time.Now().Add(life))}}, nil
		})
		r.up()
		seconds := int64(life.Seconds())
		begun := time.Now()
		r.create(newPod("aged", testservice.ImageRuns, func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "identity", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}}}}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "identity", MountPath: "/var/run/identity"}}
		}))
		r.pod("aged", phase(corev1.PodRunning))
		id := r.instance("aged").ID
		token := func() string {
			synctest.Wait()
			files := r.service.Engine.Instance(id).Spec.Volumes[0].Files
			if f, ok := r.service.Engine.Volume(id, "identity"); ok {
				files = &f
			}
			for _, f := range files.Files {
				if f.Path == "token" {
					return string(f.Data)
				}
			}
			return ""
		}
		at := func(since time.Duration, want string) {
			t.Helper()
			time.Sleep(time.Until(begun.Add(since)))
			if got := token(); got != want {
				t.Errorf("after %v the instance has %q, not %q", since, got, want)
			}
		}
		at(time.Minute, "token-1")
		at(life*79/100, "token-1")
		at(life*81/100, "token-2")
		at(life*159/100, "token-2")
		at(life*162/100, "token-3")
		if n := made.Load(); n != 3 {
			t.Errorf("%d tokens were made", n)
		}
		r.stop()
	})
}
