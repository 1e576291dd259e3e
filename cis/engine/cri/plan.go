package cri

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/pkg/apparmor"
	corev1 "k8s.io/api/core/v1"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
	"cumulet.io/logs/crilog"
)

// plan is a container to be made: its configuration, complete but for what mountsFor adds.
type plan struct {
	spec   *cis.Container
	config *rt.ContainerConfig
}

func (a *actor) containerConfig(c *container, attempt int, img imageInfo) (*plan, error) {
	sec, err := containerSecurity(a.spec, c.spec, img)
	if err != nil {
		return nil, err
	}
	if sec.Apparmor, err = appArmor(a.spec, c.spec, a.rec.Class, apparmor.HostSupports()); err != nil {
		return nil, err
	}
	envs, known := environ(c.spec.Env, envFields(a.ips, a.e.cfg.HostIP))
	logPath := filepath.Join(c.spec.Name, strconv.Itoa(attempt)+".log")
	if a.e.captures() {
		logPath = "" // containerd is to write none
	}
	return &plan{spec: c.spec, config: &rt.ContainerConfig{
		Metadata:   &rt.ContainerMetadata{Name: c.spec.Name, Attempt: uint32(attempt)},
		Image:      &rt.ImageSpec{Image: img.id, UserSpecifiedImage: c.spec.Image},
		Command:    cis.ExpandAll(c.spec.Command, known),
		Args:       cis.ExpandAll(c.spec.Args, known),
		WorkingDir: c.spec.WorkingDir,
		Envs:       envs,
		Labels: map[string]string{labelInstance: a.id, labelOrg: a.org, labelNode: a.e.cfg.Node,
			labelIncarnation: strconv.FormatInt(a.rec.Incarnation, 10)},
		LogPath:   logPath,
		Stdin:     c.spec.Stdin,
		StdinOnce: c.spec.StdinOnce,
		Tty:       c.spec.TTY,
		Linux:     &rt.LinuxContainerConfig{Resources: containerResources(a.spec, c.spec, a.e.memory), SecurityContext: sec},
	}}, nil
}

// Bounds of a termination message, as kubelet's.
const (
	maxMessageBytes  = 4096
	maxFallbackBytes = 2048
	fallbackLines    = 80
)

// terminationMessage is what the container left in its message file, or the end of its log if it asked for that.
func (a *actor) terminationMessage(c *container, attempt int, exitCode int32) string {
	if f, err := os.Open(a.vols.messagePath(c.spec.Name, attempt)); err == nil {
		b, err := io.ReadAll(io.LimitReader(f, maxMessageBytes))
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Sprintf("Error on reading termination log %s", filepath.Base(c.spec.TerminationMessagePath))
		}
		if len(b) > 0 {
			return string(b)
		}
	}
	if exitCode == 0 || c.spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
		return ""
	}
	lines := int64(fallbackLines)
	tail := lastBytes{max: maxFallbackBytes}
	if err := crilog.Copy(a.ctx, &tail, a.logFile(c.spec.Name, attempt), crilog.Options{Tail: &lines}); err != nil {
		return ""
	}
	return string(tail.b)
}

func (a *actor) logFile(container string, attempt int) string {
	return filepath.Join(a.logDir(), container, strconv.Itoa(attempt)+".log")
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	b   []byte
	max int
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	if n := len(l.b) - l.max; n > 0 {
		l.b = bytes.Clone(l.b[n:])
	}
	return len(p), nil
}

func (a *actor) ip() string {
	if len(a.ips) == 0 {
		return ""
	}
	return a.ips[0]
}

// probeDelay is a probe's initial delay, counted from the start of the run.
func probeDelay(p *corev1.Probe, startedAt time.Time) time.Duration {
	return time.Until(startedAt.Add(time.Duration(p.InitialDelaySeconds) * time.Second))
}
