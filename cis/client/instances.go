package client

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"cumulet.io/cis"
)

// The client is everything that the service is.
var (
	_ cis.Instances     = (*Client)(nil)
	_ cis.Watcher       = (*Client)(nil)
	_ cis.EventLister   = (*Client)(nil)
	_ cis.Execer        = (*Client)(nil)
	_ cis.LogReader     = (*Client)(nil)
	_ cis.PortForwarder = (*Client)(nil)
	_ cis.StatsReader   = (*Client)(nil)
)

// Create implements cis.Instances. It is repeated on faults: the key makes that safe. After a fault whose first try
// had reached the service, created is false.
func (c *Client) Create(ctx context.Context, org string, req cis.CreateRequest) (*cis.Instance, bool, error) {
	var in cis.Instance
	status, err := c.call(ctx, "create instance", http.MethodPost, c.orgURL(nil, org, "instances"), req, &in)
	if err != nil {
		return nil, false, err
	}
	return &in, status == http.StatusCreated, nil
}

// Get implements cis.Instances.
func (c *Client) Get(ctx context.Context, org, id string) (*cis.Instance, error) {
	var in cis.Instance
	if _, err := c.call(ctx, "get instance", http.MethodGet, c.orgURL(nil, org, "instances", id), nil, &in); err != nil {
		return nil, err
	}
	return &in, nil
}

// List implements cis.Instances.
func (c *Client) List(ctx context.Context, org string, req cis.ListRequest) (*cis.InstanceList, error) {
	q := url.Values{}
	if req.Node != "" {
		q.Set("node", req.Node)
	}
	for k, v := range req.Labels {
		q.Add("label", k+"="+v)
	}
	slices.Sort(q["label"])
	if req.Live {
		q.Set("live", "true")
	}
	if req.Limit != 0 {
		q.Set("limit", strconv.Itoa(req.Limit))
	}
	if req.Cursor != "" {
		q.Set("cursor", req.Cursor)
	}
	var out cis.InstanceList
	if _, err := c.call(ctx, "list instances", http.MethodGet, c.orgURL(q, org, "instances"), nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Delete implements cis.Instances.
func (c *Client) Delete(ctx context.Context, org, id string, graceSeconds *int64) (*cis.Instance, error) {
	q := url.Values{}
	if graceSeconds != nil {
		q.Set("graceSeconds", strconv.FormatInt(*graceSeconds, 10))
	}
	var in cis.Instance
	if _, err := c.call(ctx, "delete instance", http.MethodDelete, c.orgURL(q, org, "instances", id), nil, &in); err != nil {
		return nil, err
	}
	return &in, nil
}

// UpdateVolume implements cis.Instances.
func (c *Client) UpdateVolume(ctx context.Context, org, id, volume string, files cis.FilesVolume) error {
	_, err := c.call(ctx, "update volume", http.MethodPut, c.orgURL(nil, org, "instances", id, "volumes", volume), files, nil)
	return err
}

// Events implements cis.EventLister.
func (c *Client) Events(ctx context.Context, org, id string) ([]cis.Event, error) {
	var out struct {
		Items []cis.Event `json:"items"`
	}
	if _, err := c.call(ctx, "list events", http.MethodGet, c.orgURL(nil, org, "instances", id, "events"), nil, &out); err != nil {
		return nil, err
	}
	return out.Items, nil
}

// Stats implements cis.StatsReader.
func (c *Client) Stats(ctx context.Context, org string, ids []string) ([]cis.Stats, error) {
	var out struct {
		Items []cis.Stats `json:"items"`
	}
	if _, err := c.call(ctx, "read stats", http.MethodGet, c.orgURL(url.Values{"id": ids}, org, "stats"), nil, &out); err != nil {
		return nil, err
	}
	return out.Items, nil
}

// Sandboxes tells the sandbox classes of the place where instances run.
func (c *Client) Sandboxes(ctx context.Context) (*cis.Sandboxes, error) {
	var out cis.Sandboxes
	if _, err := c.call(ctx, "list sandbox classes", http.MethodGet, c.url(nil, "v1", "sandboxes"), nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
