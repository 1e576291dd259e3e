package enginetest

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"cumulet.io/cis"
)

// containerCases are what happens inside an instance.
func containerCases() []testCase {
	return []testCase{
		{"RestartAlways", restartAlways},
		{"RestartOnFailure", restartOnFailure},
		{"InitOrder", initOrder},
		{"InitFailure", initFailure},
		{"InitRetry", initRetry},
		{"Sidecar", sidecar},
		{"ReadinessGatesReady", readiness},
		{"StartupGatesOthers", startup},
		{"LivenessRestarts", liveness},
		{"NetworkProbes", networkProbes},
		{"PostStartAndPreStop", hooks},
		{"Environment", environment},
		{"EmptyDirIsShared", sharedDir},
		{"Files", files},
		{"SubPath", subPath},
		{"RunAsUser", runAsUser},
		{"ReadOnlyRoot", readOnlyRoot},
		{"WorkingDir", workingDir},
		{"TerminationMessage", terminationMessage},
		{"OOMKilled", oomKilled},
	}
}

func restartAlways(r *rig) {
	id := r.ensure(r.instance("exit 4", restart(corev1.RestartPolicyAlways)))
	st := r.await(id, func(st cis.Status) bool { return find(st, "main").RestartCount >= 2 })
	last := find(st, "main").LastTerminationState.Terminated
	if st.Phase != cis.Running || last == nil || last.ExitCode != 4 {
		r.Errorf("restarting: %s, last end %+v", describe(st), last)
	}
	backOff := func(st cis.Status) bool {
		w := find(st, "main").State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	}
	if !slices.ContainsFunc(r.sink.History(id), backOff) {
		r.await(id, backOff)
	}
	r.sink.AwaitEvent(r, id, func(ev cis.Event) bool { return ev.Reason == "BackOff" && ev.Container == "main" }, r.timeout())
}

func restartOnFailure(r *rig) {
	if _, st := r.finish("exit 0", restart(corev1.RestartPolicyOnFailure)); st.Phase != cis.Succeeded || find(st, "main").RestartCount != 0 {
		r.Errorf("success: %s", describe(st))
	}
	// Fails once, then finds its trace.
	_, st := r.finish("test -f /data/1 && exit 0; touch /data/1; exit 1", scratch, restart(corev1.RestartPolicyOnFailure))
	if st.Phase != cis.Succeeded || find(st, "main").RestartCount != 1 {
		r.Errorf("success at the second attempt: %s", describe(st))
	}
}

func initOrder(r *rig) {
	got := r.says("echo main >> /data/log; cat /data/log > /dev/termination-log", func(s *cis.Spec) {
		s.InitContainers = []cis.Container{r.container("one", "echo one >> /data/log"), r.container("two", "echo two >> /data/log")}
		scratch(s)
	})
	if strings.Join(strings.Fields(got), " ") != "one two main" {
		r.Errorf("order: %q", got)
	}
}

func initFailure(r *rig) {
	id, st := r.finish("exit 0", func(s *cis.Spec) {
		s.InitContainers = []cis.Container{r.container("one", "exit 5"), r.container("two", "exit 0")}
	})
	if st.Phase != cis.Failed || terminated(r, st, "one").ExitCode != 5 || st.Initialized {
		r.Errorf("after a failed init container: %s", describe(st))
	}
	for _, st := range r.sink.History(id) {
		for _, name := range []string{"two", "main"} {
			if c := find(st, name); c.State.Running != nil || c.ContainerID != "" {
				r.Fatalf("%s began: %s", name, describe(st))
			}
		}
	}
}

func initRetry(r *rig) {
	_, st := r.finish("exit 0", func(s *cis.Spec) {
		s.InitContainers = []cis.Container{r.container("one", "test -f /data/1 && exit 0; touch /data/1; exit 1")}
		scratch(s)
	}, restart(corev1.RestartPolicyOnFailure))
	if st.Phase != cis.Succeeded || find(st, "one").RestartCount != 1 || !st.Initialized {
		r.Errorf("init container that fails once: %s", describe(st))
	}
}

func sidecar(r *rig) {
	always := corev1.ContainerRestartPolicyAlways
	id, st := r.finish("test -f /data/up && echo yes > /dev/termination-log", func(s *cis.Spec) {
		side := r.container("side", "trap 'exit 0' TERM; touch /data/up; sleep 3600 & wait")
		side.RestartPolicy, side.StartupProbe = &always, whenFile("/data/up")
		s.InitContainers = []cis.Container{side, r.container("one", "test -f /data/up")}
		scratch(s)
	})
	if st.Phase != cis.Succeeded || !strings.Contains(terminated(r, st, "main").Message, "yes") {
		r.Errorf("with a sidecar: %s", describe(st))
	}
	if find(st, "side").State.Terminated == nil {
		r.Errorf("the sidecar outlived the instance: %s", describe(st))
	}
	beside := func(st cis.Status) bool {
		return find(st, "side").State.Running != nil && find(st, "one").State.Terminated != nil
	}
	if !slices.ContainsFunc(r.sink.History(id), beside) {
		r.Error("the sidecar was not seen running beside what follows")
	}
}

func readiness(r *rig) {
	id := r.ensure(r.instance("sleep 2; touch /tmp/up; sleep 3600", readyWhen("/tmp/up"), noGrace))
	st := r.await(id, running)
	if st.Ready || find(st, "main").Ready {
		r.Errorf("ready before the probe can succeed: %s", describe(st))
	}
	st = r.await(id, ready)
	if !find(st, "main").Ready || find(st, "main").RestartCount != 0 {
		r.Errorf("ready: %s", describe(st))
	}
}

func noGrace(s *cis.Spec) { zero := int64(0); s.GraceSeconds = &zero }

func startup(r *rig) {
	id := r.ensure(r.instance("sleep 3; touch /tmp/up; touch /tmp/alive; sleep 3600", readyWhen("/tmp/up"), noGrace, func(s *cis.Spec) {
		c := &s.Containers[0]
		c.StartupProbe, c.LivenessProbe = whenFile("/tmp/up"), whenFile("/tmp/alive")
		c.StartupProbe.FailureThreshold = 60
		c.LivenessProbe.FailureThreshold = 1 // would kill at once, were it asked before the start
	}))
	st := r.await(id, ready)
	if c := find(st, "main"); c.RestartCount != 0 || c.Started == nil || !*c.Started {
		r.Errorf("after the startup probe: %s", describe(st))
	}
}

func liveness(r *rig) {
	id := r.ensure(r.instance("touch /data/alive; sleep 3; rm /data/alive; sleep 3600", scratch, noGrace, restart(corev1.RestartPolicyAlways), func(s *cis.Spec) {
		s.Containers[0].LivenessProbe = whenFile("/data/alive")
		s.Containers[0].LivenessProbe.FailureThreshold = 2
	}))
	st := r.await(id, func(st cis.Status) bool { return find(st, "main").RestartCount >= 1 })
	if last := find(st, "main").LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
		r.Errorf("killed by its liveness probe: %+v", last)
	}
	r.sink.AwaitEvent(r, id, func(ev cis.Event) bool { return ev.Type == cis.Warning && ev.Reason == "Unhealthy" }, r.timeout())
}

func networkProbes(r *rig) {
	id := r.ensure(r.instance("sleep 2; touch /data/index.html; exec httpd -f -p 8080 -h /data", scratch, noGrace, func(s *cis.Spec) {
		c := &s.Containers[0]
		c.Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}
		c.StartupProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 60, ProbeHandler: corev1.ProbeHandler{
			TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}}}
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/index.html", Port: intstr.FromInt32(8080)}}}
		c.LivenessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("web")}}}
	}))
	if st := r.await(id, ready); find(st, "main").RestartCount != 0 {
		r.Errorf("ready: %s", describe(st))
	}
}

func hooks(r *rig) {
	in := r.instance("trap 'cat /data/stop > /dev/termination-log; exit 0' TERM; touch /tmp/up; sleep 3600 & wait", scratch, readyWhen("/data/begun"), func(s *cis.Spec) {
		s.Containers[0].Lifecycle = &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"touch", "/data/begun"}}},
			PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: r.f.Shell("echo stopping > /data/stop")}},
		}
		s.Containers[0].StartupProbe = whenFile("/tmp/up")
	})
	id := r.ensure(in)
	r.await(id, ready)
	r.ask(in, 60)
	st := r.await(id, ended)
	if end := terminated(r, st, "main"); end.ExitCode != 0 || !strings.Contains(end.Message, "stopping") {
		r.Errorf("the preStop hook did not come before TERM: %s", describe(st))
	}
}

func environment(r *rig) {
	id, st := r.finish(`echo "$A|$B|$C|$IP" > /dev/termination-log`, func(s *cis.Spec) {
		s.Containers[0].Env = []cis.EnvVar{
			{Name: "A", Value: "x y"},
			{Name: "B", Value: "$(A)-$$(A)-$(NONE)", Expand: true},
			{Name: "C", Value: "$(A)", Secret: true},
			{Name: "IP", Field: "status.podIP"},
		}
	})
	if st.Phase != cis.Succeeded {
		r.Fatalf("%s", describe(st))
	}
	ip := ""
	for _, st := range r.sink.History(id) {
		if len(st.IPs) > 0 {
			ip = st.IPs[0]
		}
	}
	want := "x y|x y-$(A)-$(NONE)|$(A)|" + ip
	if got := strings.TrimSpace(terminated(r, st, "main").Message); got != want || ip == "" {
		r.Errorf("environment %q, want %q", got, want)
	}
}

func sharedDir(r *rig) {
	id := r.ensure(r.instance("sleep 3600", noGrace, func(s *cis.Spec) {
		s.Containers = append(s.Containers, r.container("other", "touch /data/from-other; sleep 3600"))
		s.Containers[0].ReadinessProbe = whenFile("/data/from-other")
		scratch(s)
	}))
	r.await(id, ready)
}

// config gives main a volume of files at /conf.
func config(files ...cis.File) func(*cis.Spec) {
	return func(s *cis.Spec) {
		s.Volumes = append(s.Volumes, cis.Volume{Name: "conf", Files: &cis.FilesVolume{Files: files}})
		s.Containers[0].Mounts = append(s.Containers[0].Mounts, cis.Mount{Volume: "conf", Path: "/conf", ReadOnly: true})
	}
}

func files(r *rig) {
	got := r.says("cat /conf/a /conf/dir/b > /dev/termination-log; touch /conf/c 2> /dev/null && exit 9; exit 0",
		config(cis.File{Path: "a", Data: []byte("one ")}, cis.File{Path: "dir/b", Data: []byte("two"), Mode: 0o400}))
	if got != "one two" {
		r.Errorf("files read as %q", got)
	}
}

func subPath(r *rig) {
	got := r.says("cat /etc/one/a > /dev/termination-log; touch /work/x", scratch, func(s *cis.Spec) {
		config(cis.File{Path: "dir/a", Data: []byte("one")})(s)
		s.Containers[0].Mounts = []cis.Mount{{Volume: "conf", Path: "/etc/one", SubPath: "dir"}, {Volume: "data", Path: "/work", SubPath: "new/dir"}}
	})
	if got != "one" {
		r.Errorf("file below a sub-path read as %q", got)
	}
}

func runAsUser(r *rig) {
	user, group := int64(1234), int64(2345)
	got := r.says("id -u > /dev/termination-log; id -g >> /dev/termination-log; touch /data/mine", scratch, func(s *cis.Spec) {
		s.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &group, FSGroup: &group}
		s.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user, RunAsGroup: &group}
	})
	if strings.Join(strings.Fields(got), " ") != "1234 2345" {
		r.Errorf("ran as %q", got)
	}
}

func readOnlyRoot(r *rig) {
	yes := true
	r.says("touch /nope 2> /dev/null && exit 9; touch /data/yes || exit 8; exit 0", scratch, func(s *cis.Spec) {
		s.Containers[0].SecurityContext = &corev1.SecurityContext{ReadOnlyRootFilesystem: &yes}
	})
}

func workingDir(r *rig) {
	if got := r.says("pwd > /dev/termination-log", func(s *cis.Spec) { s.Containers[0].WorkingDir = "/tmp" }); strings.TrimSpace(got) != "/tmp" {
		r.Errorf("worked in %q", got)
	}
}

func terminationMessage(r *rig) {
	_, st := r.finish("echo first; echo last words; exit 1", func(s *cis.Spec) {
		s.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	})
	if got := terminated(r, st, "main").Message; !strings.Contains(got, "last words") {
		r.Errorf("from the log: %q", got)
	}
	_, st = r.finish("echo from the file > /tmp/message; echo other; exit 1", func(s *cis.Spec) {
		s.Containers[0].TerminationMessagePath = "/tmp/message"
		s.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	})
	if got := terminated(r, st, "main").Message; strings.TrimSpace(got) != "from the file" {
		r.Errorf("from a path of its own: %q", got)
	}
}

func oomKilled(r *rig) {
	_, st := r.finish("tail /dev/zero", func(s *cis.Spec) {
		s.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("24Mi")}
	})
	if end := terminated(r, st, "main"); end.Reason != "OOMKilled" || end.ExitCode != 137 || st.Phase != cis.Failed {
		r.Errorf("out of memory: %s", describe(st))
	}
}
