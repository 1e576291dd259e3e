package command

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilexec "k8s.io/utils/exec"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cmd/cis/output"
	"cumulet.io/internal/problem"
)

type runFlags struct {
	name, key, sandbox, cpu, memory, restart, workdir string
	env                                               []string
	labels                                            map[string]string
	detach, rm, entrypoint                            bool
	user                                              int64
	timeout                                           time.Duration
}

func (a *app) run() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run IMAGE [ARG...]",
		Short: "Run an image as a container instance, with no Kubernetes at all",
		Long: "Run an image as a container instance and follow its output until it ends; the exit code is the container's.\n" +
			"With --detach, print the instance's id as soon as it is accepted.",
		Example: "  cis run 127.0.0.1:5000/demo/hello:1 work --lines 3\n  cis run -d --cpu 1 --memory 2Gi --name web 127.0.0.1:5000/demo/hello:1",
		Args:    usage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(args)
			if err != nil {
				return err
			}
			c, s, err := a.service()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			in, created, err := c.Create(ctx, s.Org, *req)
			if err != nil {
				return err
			}
			if f.detach {
				if a.format == output.JSON || a.format == output.YAML {
					return output.Print(a.env.Out, a.format, in, output.Columns{}, nil)
				}
				fmt.Fprintln(a.env.Out, in.ID)
				return nil
			}
			if !created {
				fmt.Fprintf(a.env.Err, "instance %s has this key already\n", in.ID)
			}
			return a.follow(ctx, c, s.Org, in, f.rm)
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.StringVar(&f.name, "name", "", "name for people; default from the image")
	fl.StringVar(&f.key, "key", "", "name of this create: repeating it makes no second instance; default random")
	fl.StringVar(&f.sandbox, "sandbox", "", "kata, gvisor or runc; default the strongest that the host supports")
	fl.StringVar(&f.cpu, "cpu", "", "vCPUs, as 0.5 or 500m")
	fl.StringVar(&f.memory, "memory", "", "memory, as 512Mi")
	fl.StringVar(&f.restart, "restart", "Never", "Always, OnFailure or Never")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE, or NAME to pass the variable of this shell on")
	fl.StringToStringVarP(&f.labels, "label", "l", nil, "label, key=value")
	fl.BoolVarP(&f.detach, "detach", "d", false, "do not follow; print the id")
	fl.BoolVar(&f.rm, "rm", false, "end the instance when cis is interrupted")
	fl.BoolVar(&f.entrypoint, "entrypoint", false, "the arguments replace the image's entrypoint, not its arguments")
	fl.Int64Var(&f.user, "user", -1, "user id to run as")
	fl.DurationVar(&f.timeout, "timeout", 0, "end the instance as failed after this time")
	return cmd
}

func (f *runFlags) request(args []string) (*cis.CreateRequest, error) {
	image := args[0]
	name := f.name
	if name == "" {
		base := path.Base(image)
		base, _, _ = strings.Cut(base, "@")
		base, _, _ = strings.Cut(base, ":")
		name = strings.ToLower(strings.ReplaceAll(base, "_", "-"))
	}
	if f.key == "" {
		f.key = "cis-" + strings.ToLower(rand.Text())
	}
	c := cis.Container{Name: "main", Image: image, WorkingDir: f.workdir}
	if f.entrypoint {
		c.Command = args[1:]
	} else {
		c.Args = args[1:]
	}
	for _, e := range f.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				return nil, &usageError{fmt.Errorf("--env %s: not set in this shell", k)}
			}
		}
		c.Env = append(c.Env, cis.EnvVar{Name: k, Value: v})
	}
	limits := corev1.ResourceList{}
	for res, v := range map[corev1.ResourceName]string{corev1.ResourceCPU: f.cpu, corev1.ResourceMemory: f.memory} {
		if v == "" {
			continue
		}
		q, err := resource.ParseQuantity(v)
		if err != nil || q.Sign() <= 0 {
			return nil, &usageError{fmt.Errorf("--%s %s: must be a quantity above 0, as 500m or 512Mi", res, v)}
		}
		limits[res] = q
	}
	c.Resources = corev1.ResourceRequirements{Limits: limits, Requests: limits.DeepCopy()}
	if f.user >= 0 {
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: &f.user}
	}
	spec := cis.Spec{Name: name, Labels: f.labels, Sandbox: cis.SandboxClass(f.sandbox), Containers: []cis.Container{c}, RestartPolicy: corev1.RestartPolicy(f.restart)}
	if f.timeout > 0 {
		s := int64((f.timeout + time.Second - 1) / time.Second)
		spec.DeadlineSeconds = &s
	}
	return &cis.CreateRequest{Key: f.key, Spec: spec}, nil
}

// follow shows progress until the instance runs, then its output until it ends, and gives its exit code.
func (a *app) follow(ctx context.Context, c *client.Client, org string, in *cis.Instance, rm bool) error {
	fmt.Fprintf(a.env.Err, "instance %s\n", in.ID)
	if rm {
		defer func() {
			if ctx.Err() != nil {
				bg, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				defer cancel()
				if _, err := c.Delete(bg, org, in.ID, nil); err != nil {
					fmt.Fprintln(a.env.Err, "cis: end instance:", err)
				}
			}
		}()
	}
	in, err := a.await(ctx, c, org, in, func(in *cis.Instance) bool {
		return in.Status.Phase.Final() || slices.ContainsFunc(in.Status.Containers, func(s corev1.ContainerStatus) bool {
			return s.State.Running != nil || s.State.Terminated != nil
		})
	})
	if err != nil {
		return err
	}
	if in.Status.Phase != cis.Rejected {
		if err := a.copyLogs(ctx, c, org, in.ID, cis.LogRequest{Container: in.Spec.Containers[0].Name, Follow: true}); err != nil {
			return err
		}
	}
	if in, err = a.await(ctx, c, org, in, func(in *cis.Instance) bool { return in.Status.Phase.Final() }); err != nil {
		return err
	}
	for _, s := range in.Status.Containers {
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			fmt.Fprintf(a.env.Err, "ended: %s, exit code %d\n", t.Reason, t.ExitCode)
			return utilexec.CodeExitError{Err: fmt.Errorf("exit code %d", t.ExitCode), Code: int(t.ExitCode)}
		}
	}
	if in.Status.Phase != cis.Succeeded {
		return fmt.Errorf("instance %s: %s: %s", in.ID, status(in), in.Status.Message)
	}
	return nil
}

// await watches until done, printing what changes on the way.
func (a *app) await(ctx context.Context, c *client.Client, org string, in *cis.Instance, done func(*cis.Instance) bool) (*cis.Instance, error) {
	// The watch begins where this listing ends, so that nothing falls between.
	start, err := c.List(ctx, org, cis.ListRequest{Limit: 1})
	if err != nil {
		return nil, err
	}
	if in, err = c.Get(ctx, org, in.ID); err != nil || done(in) {
		return in, err
	}
	last := ""
	for item, err := range c.Watch(ctx, org, "", start.Cursor) {
		if err != nil {
			return nil, err
		}
		switch {
		case item.Event != nil && item.Event.Instance == in.ID:
			fmt.Fprintf(a.env.Err, "%s %s\n", item.Event.Reason, output.Clean(item.Event.Message))
		case item.Instance != nil && item.Instance.ID == in.ID:
			in = item.Instance
			if s := status(in); s != last {
				last = s
				fmt.Fprintln(a.env.Err, s)
			}
			if done(in) {
				return in, nil
			}
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("stopped waiting; the instance %s goes on: cis logs -f %s", in.ID, in.ID)
	}
	return nil, problem.New(problem.ErrUnavailable, "the watch ended")
}
