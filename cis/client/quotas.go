package client

import (
	"context"
	"net/http"

	"cumulet.io/cis"
)

// Quota tells what bounds an org. It needs a token of an operator or administrator of the platform.
func (c *Client) Quota(ctx context.Context, org string) (*cis.OrgQuota, error) {
	return c.quota(ctx, "read quota", http.MethodGet, org, nil)
}

// SetQuota sets an org's quota, or with nil lets the configuration's hold again; who does it is the token's. It needs a
// token as Quota does.
func (c *Client) SetQuota(ctx context.Context, org string, q *cis.Quota) (*cis.OrgQuota, error) {
	if q == nil {
		return c.quota(ctx, "unset quota", http.MethodDelete, org, nil)
	}
	return c.quota(ctx, "set quota", http.MethodPut, org, q)
}

func (c *Client) quota(ctx context.Context, op, method, org string, in any) (*cis.OrgQuota, error) {
	var out cis.OrgQuota
	if _, err := c.call(ctx, op, method, c.orgURL(nil, org, "quota"), in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
