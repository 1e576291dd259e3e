package bench

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"cumulet.io/cis"
	"cumulet.io/cis/client"
	"cumulet.io/cmd/cis/session"
	"cumulet.io/registry/hubtoken"
)

// org owns the benchmarks' instances.
const org = "demo"

// service is the container instance service, as the administrator calls it.
func (s *started) service(ctx context.Context) (*client.Client, error) {
	where, err := session.Discover(ctx, s.URL["control"])
	if err != nil {
		return nil, err
	}
	login, err := session.Login(ctx, where, "admin", s.Password(), org)
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{BaseURL: s.URL["control"], Source: login.Source(hubtoken.AudienceCIS)})
}

// instancesMany makes n instances, eight creates at a time, with what a pod of the benchmark has, and waits until each has
// begun.
func (s *started) instancesMany(ctx context.Context, service *client.Client, name, class string, n int) error {
	var group errgroup.Group
	group.SetLimit(8)
	made := make([]string, n)
	for i := range n {
		group.Go(func() error {
			o := pod(fmt.Sprintf("%s-%d", name, i), s.image, class, "stamp")
			c := o.Spec.Containers[0]
			in, _, err := service.Create(ctx, org, cis.CreateRequest{Key: o.Name, Spec: cis.Spec{
				Name: o.Name, Sandbox: cis.SandboxClass(class), GraceSeconds: o.Spec.TerminationGracePeriodSeconds,
				Containers: []cis.Container{{Name: c.Name, Image: c.Image, Args: c.Args, Resources: c.Resources}}}})
			if err != nil {
				return err
			}
			made[i] = in.ID
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, id := range made {
		if _, err := stamp(ctx, s.logOf(id)); err != nil {
			return err
		}
	}
	return nil
}

// end ends every instance of the org and waits until all have ended.
func end(ctx context.Context, service *client.Client) error {
	list, err := service.List(ctx, org, cis.ListRequest{Live: true, Limit: 1000})
	if err != nil {
		return err
	}
	left := map[string]bool{}
	for _, in := range list.Items {
		left[in.ID] = true
		if _, err := service.Delete(ctx, org, in.ID, nil); err != nil {
			return err
		}
	}
	if len(left) == 0 {
		return nil
	}
	for item, err := range service.Watch(ctx, org, "", list.Cursor) {
		if err != nil {
			return fmt.Errorf("%d instances are left: %w", len(left), err)
		}
		if item.Instance != nil && item.Instance.Status.Phase.Final() {
			delete(left, item.Instance.ID)
		}
		if len(left) == 0 {
			break
		}
	}
	return nil
}
