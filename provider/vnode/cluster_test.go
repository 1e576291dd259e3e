package vnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"cumulet.io/cis"
	"cumulet.io/internal/testenv"
	"cumulet.io/provider/internal/testservice"
)

// cluster is a control plane with a virtual node that a test can stop and start again.
type cluster struct {
	*testenv.ClusterEnv
	t       *testing.T
	client  kubernetes.Interface
	service *testservice.Service
	cancel  context.CancelFunc
	done    chan error
	node    *Node
	pods    atomic.Int64 // the capacity of where instances run
}

// place stands for the instance service.
func (c *cluster) place(context.Context) (*cis.Sandboxes, error) {
	return &cis.Sandboxes{Capacity: cis.Capacity{Instances: c.pods.Load(), MilliCPU: 7500, MemoryMiB: 4096}}, nil
}

// capacity waits for the capacity that the scheduler sees.
func (c *cluster) capacity(pods int64) {
	c.t.Helper()
	c.eventually(func(ctx context.Context) error {
		n, err := c.client.CoreV1().Nodes().Get(ctx, c.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, all := range []corev1.ResourceList{n.Status.Capacity, n.Status.Allocatable} {
			if all.Pods().Value() != pods || all.Cpu().MilliValue() != 7500 || all.Memory().Value() != 4<<30 {
				return fmt.Errorf("capacity %v, allocatable %v", n.Status.Capacity, n.Status.Allocatable)
			}
		}
		return nil
	})
}

const patience = 60 * time.Second

func newCluster(t *testing.T) *cluster {
	t.Helper()
	env := testenv.Cluster(t)
	cfg, err := clientcmd.BuildConfigFromFlags("", env.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 200, 400
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{ClusterEnv: env, t: t, client: client, service: testservice.Start(t)}
	c.pods.Store(111)
	t.Cleanup(c.down)
	return c
}

func (c *cluster) up() {
	c.t.Helper()
	log := slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	n, err := New(Config{
		Name: c.NodeName, Org: "acme", Kubeconfig: c.KubeletKubeconfig, Services: c.service.Parts(),
		Listen: "127.0.0.1:0", Address: "127.0.0.1", CertFile: c.NodeCertFile, KeyFile: c.NodeKeyFile, ClientCAFile: c.NodeCAFile,
		ClusterDNS: []string{"198.18.0.10"}, Reconcile: time.Second, Logger: log, Place: c.place,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.done, c.node = cancel, make(chan error, 1), n
	go func() { c.done <- n.Run(ctx) }()
	select {
	case <-n.Ready():
	case err := <-c.done:
		c.t.Fatalf("node ended: %v", err)
	case <-time.After(patience):
		c.t.Fatal("the node does not get ready")
	}
}

func (c *cluster) down() {
	if c.cancel == nil {
		return
	}
	c.cancel()
	c.cancel = nil
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Errorf("node: %v", err)
		}
	case <-time.After(30 * time.Second):
		c.t.Error("the node does not stop")
	}
}

func (c *cluster) eventually(f func(ctx context.Context) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	testenv.Eventually(c.t, patience, func() error { return f(ctx) })
}

func podSpec(image string) corev1.PodSpec {
	return corev1.PodSpec{
		NodeSelector: map[string]string{"type": "virtual-kubelet"},
		Tolerations:  []corev1.Toleration{{Key: TaintKey, Operator: corev1.TolerationOpExists}},
		Containers:   []corev1.Container{{Name: "app", Image: image}},
	}
}

func (c *cluster) pod(name, image string, change ...func(*corev1.Pod)) *corev1.Pod {
	c.t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: podSpec(image)}
	for _, f := range change {
		f(pod)
	}
	made, err := c.client.CoreV1().Pods("default").Create(context.Background(), pod, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return made
}

func (c *cluster) phase(name string, want corev1.PodPhase) *corev1.Pod {
	c.t.Helper()
	var pod *corev1.Pod
	c.eventually(func(ctx context.Context) error {
		var err error
		if pod, err = c.client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if pod.Status.Phase != want {
			return fmt.Errorf("pod %s is %s (%s %s), not %s", name, pod.Status.Phase, pod.Status.Reason, pod.Status.Message, want)
		}
		return nil
	})
	return pod
}

func (c *cluster) event(name, reason, part string) {
	c.t.Helper()
	c.eventually(func(ctx context.Context) error {
		list, err := c.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.Reason == reason && strings.Contains(e.Message, part) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no event %s with %q on %s, only %q", reason, part, name, seen)
	})
}

func (c *cluster) gone(name string) {
	c.t.Helper()
	c.eventually(func(ctx context.Context) error {
		_, err := c.client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("pod %s is still there (%v)", name, err)
	})
}

func (c *cluster) live(want int) {
	c.t.Helper()
	c.eventually(func(context.Context) error {
		if n := len(c.service.Live(c.t, "acme")); n != want {
			return fmt.Errorf("%d live instances, not %d", n, want)
		}
		return nil
	})
}

func (c *cluster) kubectl(stdin string, args ...string) (string, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, testenv.Tool(c.t, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		return out.String(), fmt.Errorf("kubectl %v: %w: %s", args, err, errs.String())
	}
	return out.String(), nil
}

// kubelet asks the node's API as the cluster's administrator.
func (c *cluster) kubelet(path string) (string, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return "", err
	}
	tlsConfig, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{TLSClientConfig: tlsConfig}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://" + c.node.Addr().String() + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// TestCluster is the virtual node on a real control plane.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	c := newCluster(t)
	ctx := context.Background()
	// A node that is there already, without its taint.
	if _, err := c.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.NodeName}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.up()

	t.Run("node", func(t *testing.T) {
		c.t = t
		n, err := c.client.CoreV1().Nodes().Get(ctx, c.NodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, x := range n.Spec.Taints {
			found = found || x.Key == TaintKey && x.Value == TaintValue && x.Effect == corev1.TaintEffectNoSchedule
		}
		if !found {
			t.Errorf("taints %v", n.Spec.Taints)
		}
		for _, l := range []string{"type", "kubernetes.io/hostname", "kubernetes.io/os", "node.kubernetes.io/exclude-from-external-load-balancers"} {
			if n.Labels[l] == "" {
				t.Errorf("no label %s in %v", l, n.Labels)
			}
		}
		c.eventually(func(ctx context.Context) error {
			_, err := c.client.CoordinationV1().Leases("kube-node-lease").Get(ctx, c.NodeName, metav1.GetOptions{})
			return err
		})
		c.capacity(111)
		c.pods.Store(222) // seen at the end
	})
	t.Run("pod", func(t *testing.T) {
		c.t = t
		made := c.pod("one", testservice.ImageRuns)
		pod := c.phase("one", corev1.PodRunning)
		if pod.Status.PodIP == "" || pod.Status.HostIP == "" || pod.Status.StartTime == nil || !pod.Status.ContainerStatuses[0].Ready {
			t.Errorf("status %+v", pod.Status)
		}
		c.event("one", "Started", "Started container app")
		c.eventually(func(ctx context.Context) error {
			if pod, err := c.client.CoreV1().Pods("default").Get(ctx, "one", metav1.GetOptions{}); err != nil {
				return err
			} else if pod.Annotations["cis.cumulet.io/instance"] == "" || pod.Annotations["cis.cumulet.io/size"] == "" || pod.Annotations[("cis.cumulet.io/sandbox-class")] != "runc" {
				return fmt.Errorf("annotations %v", pod.Annotations)
			}
			return nil
		})
		in := c.service.Engine.Instance(c.service.Live(t, "acme")[0].ID)
		if in.Key != "pod-"+string(made.UID) {
			t.Errorf("key %s", in.Key)
		}
		var token string
		for _, v := range in.Spec.Volumes {
			if v.Files != nil {
				for _, f := range v.Files.Files {
					if f.Path == "token" {
						token = string(f.Data)
					}
				}
			}
		}
		if strings.Count(token, ".") != 2 {
			t.Error("no service-account token in the instance's files")
		}
		if out, err := c.kubectl("", "logs", "one"); err != nil || out != "app one\napp two\napp three\n" {
			t.Errorf("logs %q %v", out, err)
		}
		if out, err := c.kubectl("", "logs", "one", "--tail=1"); err != nil || out != "app three\n" {
			t.Errorf("logs --tail=1 %q %v", out, err)
		}
		if out, err := c.kubectl("", "logs", "one", "--tail=0"); err != nil || out != "" {
			t.Errorf("logs --tail=0 %q %v", out, err)
		}
		if out, err := c.kubectl("", "exec", "one", "--", "echo", "hi", "there"); err != nil || out != "hi there\n" {
			t.Errorf("exec %q %v", out, err)
		}
		if out, err := c.kubectl("from stdin", "exec", "-i", "one", "--", "cat"); err != nil || out != "from stdin" {
			t.Errorf("exec -i %q %v", out, err)
		}
		var exit *exec.ExitError
		if _, err := c.kubectl("", "exec", "one", "--", "exit"); !errors.As(err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("exit code: %v", err)
		}
	})
	t.Run("kubelet API needs a client it knows", func(t *testing.T) {
		c.t = t
		tr := http.DefaultTransport.(*http.Transport).Clone()
		tr.TLSClientConfig = insecure()
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("https://" + c.node.Addr().String() + "/pods")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Error(err)
		}
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
	t.Run("usage and port-forward", func(t *testing.T) {
		c.t = t
		for path, part := range map[string]string{"/stats/summary": `"podRef"`, "/metrics/resource": `container_memory_working_set_bytes{container="app",namespace="default",pod="one"} 1.048576e+06`,
			"/pods": `"name":"one"`, "/runningpods/": `"name":"one"`, "/healthz": "ok"} {
			body, err := c.kubelet(path)
			if err != nil || !strings.Contains(body, part) {
				t.Errorf("%s: %.2000s %v", path, body, err)
			}
		}
		port := testenv.FreePort(t)
		ctx, cancel := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, testenv.Tool(t, "kubectl"), "--kubeconfig", c.Kubeconfig, "port-forward", "pod/one", fmt.Sprintf("%d:80", port))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cancel(); _ = cmd.Wait() }()
		c.eventually(func(context.Context) error {
			conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				return err
			}
			if _, err := conn.Write([]byte("ping")); err != nil {
				return err
			}
			got := make([]byte, 4)
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
				return fmt.Errorf("got %q, %w", got, err)
			}
			return nil
		})
	})
	t.Run("unsupported field", func(t *testing.T) {
		c.t = t
		c.pod("host", testservice.ImageRuns, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
		pod := c.phase("host", corev1.PodFailed)
		if !strings.Contains(pod.Status.Message, "spec.hostNetwork") {
			t.Errorf("message %q", pod.Status.Message)
		}
		c.event("host", "Unsupported", "spec.hostNetwork")
		c.pod("kata", testservice.ImageRuns, func(p *corev1.Pod) { p.Annotations = map[string]string{"cis.cumulet.io/sandbox": "kata"} })
		c.phase("kata", corev1.PodFailed)
	})
	t.Run("config map comes later", func(t *testing.T) {
		c.t = t
		c.pod("late", testservice.ImageRuns, func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "late"}}}}
		})
		c.event("late", "Failed", `configmap "late" not found`)
		c.eventually(func(ctx context.Context) error {
			pod, err := c.client.CoreV1().Pods("default").Get(ctx, "late", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if cs := pod.Status.ContainerStatuses; len(cs) != 1 || cs[0].State.Waiting == nil || cs[0].State.Waiting.Reason != "CreateContainerConfigError" {
				return fmt.Errorf("status %+v", pod.Status)
			}
			return nil
		})
		if _, err := c.client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string]string{"A": "1"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.phase("late", corev1.PodRunning)
	})
	t.Run("job", func(t *testing.T) {
		c.t = t
		spec := podSpec(testservice.ImageDone)
		spec.RestartPolicy = corev1.RestartPolicyNever
		n := int32(3)
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "job"}, Spec: batchv1.JobSpec{Completions: &n, Parallelism: &n, Template: corev1.PodTemplateSpec{Spec: spec}}}
		if _, err := c.client.BatchV1().Jobs("default").Create(ctx, job, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.eventually(func(ctx context.Context) error {
			j, err := c.client.BatchV1().Jobs("default").Get(ctx, "job", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if j.Status.Succeeded != 3 || j.Status.CompletionTime == nil {
				return fmt.Errorf("job %+v", j.Status)
			}
			return nil
		})
	})
	t.Run("deployment", func(t *testing.T) {
		c.t = t
		before := len(c.service.Live(t, "acme"))
		n := int32(20)
		labels := map[string]string{"app": "web"}
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podSpec(testservice.ImageRuns)}}}
		if _, err := c.client.AppsV1().Deployments("default").Create(ctx, d, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c.eventually(func(ctx context.Context) error {
			d, err := c.client.AppsV1().Deployments("default").Get(ctx, "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if d.Status.ReadyReplicas != 20 {
				return fmt.Errorf("%d ready", d.Status.ReadyReplicas)
			}
			return nil
		})
		t.Logf("20 pods ready in %v", time.Since(start))
		c.live(before + 20)
		policy := metav1.DeletePropagationForeground
		start = time.Now()
		if err := c.client.AppsV1().Deployments("default").Delete(ctx, "web", metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			t.Fatal(err)
		}
		c.eventually(func(ctx context.Context) error {
			list, err := c.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
			if err != nil {
				return err
			}
			if len(list.Items) > 0 {
				return fmt.Errorf("%d pods left", len(list.Items))
			}
			return nil
		})
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("20 pods took %v to go: their grace period was waited for", d)
		}
		c.live(before)
	})
	t.Run("a name taken again", func(t *testing.T) {
		c.t = t
		first := c.pod("again", testservice.ImageStubborn)
		c.phase("again", corev1.PodRunning)
		zero := int64(0)
		if err := c.client.CoreV1().Pods("default").Delete(ctx, "again", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		second := c.pod("again", testservice.ImageRuns)
		if pod := c.phase("again", corev1.PodRunning); pod.UID != second.UID {
			t.Errorf("pod %s", pod.UID)
		}
		c.eventually(func(context.Context) error {
			for _, in := range c.service.Live(t, "acme") {
				if in.Spec.Source.UID == string(first.UID) && !in.Desired.Stop {
					return errors.New("the first pod's instance goes on")
				}
			}
			return nil
		})
	})
	t.Run("deletes that nobody saw", func(t *testing.T) {
		c.t = t
		c.pod("missed", testservice.ImageRuns)
		c.phase("missed", corev1.PodRunning)
		kept := c.phase("one", corev1.PodRunning).Annotations["cis.cumulet.io/instance"]
		c.down()
		zero := int64(0)
		if err := c.client.CoreV1().Pods("default").Delete(ctx, "missed", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		var id string
		for _, in := range c.service.Live(t, "acme") {
			if in.Spec.Name == "missed" {
				id = in.ID
			}
		}
		if id == "" {
			t.Fatal("the instance has ended by itself")
		}
		c.up()
		c.eventually(func(ctx context.Context) error {
			in, err := c.service.Get(ctx, "acme", id)
			if err != nil {
				return err
			}
			if !in.Status.Phase.Final() {
				return fmt.Errorf("instance is %s", in.Status.Phase)
			}
			return nil
		})
		if in, err := c.service.Get(ctx, "acme", kept); err != nil || in.Desired.Stop {
			t.Errorf("a pod that is there lost its instance: %+v %v", in, err)
		}
	})
	t.Run("grace is kept, and the API object goes when the instance has", func(t *testing.T) {
		c.t = t
		grace := int64(2)
		c.pod("slow", testservice.ImageStubborn, func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &grace })
		c.phase("slow", corev1.PodRunning)
		start := time.Now()
		if err := c.client.CoreV1().Pods("default").Delete(ctx, "slow", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.gone("slow")
		if d := time.Since(start); d < 1900*time.Millisecond || d > 15*time.Second {
			t.Errorf("gone after %v", d)
		}
	})
	t.Run("capacity", func(t *testing.T) {
		c.t = t
		c.capacity(222)
	})
}

func TestCapacity(t *testing.T) {
	cpu := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3")}
	for _, tt := range []struct {
		name       string
		configured corev1.ResourceList
		place      cis.Capacity
		want       string
	}{
		{"nothing is known", nil, cis.Capacity{}, "1k 4Ti 100Ti 5k"},
		{"the place's", nil, cis.Capacity{Instances: 250, MilliCPU: 2000, MemoryMiB: 1024, EphemeralDiskMiB: 2048}, "2 1Gi 2Gi 250"},
		{"the configured goes first", cpu, cis.Capacity{MilliCPU: 2000, MemoryMiB: 1024}, "3 1Gi 100Ti 5k"},
	} {
		c := capacity(tt.configured, tt.place)
		if got := fmt.Sprint(c.Cpu(), " ", c.Memory(), " ", c.StorageEphemeral(), " ", c.Pods()); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
