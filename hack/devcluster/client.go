package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed rbac.yaml
var rbac []byte

// Client is the administrator's, for the little that up itself asks of the API.
type Client struct {
	server string
	http   *http.Client
}

func newClient(pki PKI, server string) (*Client, error) {
	ca, err := os.ReadFile(pki.cert("ca"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", pki.cert("ca"))
	}
	pair, err := tls.LoadX509KeyPair(pki.cert("admin"), pki.key("admin"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	return &Client{server: server, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: config},
		Timeout:   30 * time.Second,
	}}, nil
}

// WaitFor waits until the path answers 200, or ctx ends.
func (c *Client) WaitFor(ctx context.Context, path string) error {
	for {
		err := c.do(ctx, http.MethodGet, path, "", nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w)", path, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// paths are the collections of the kinds that rbac.yaml uses.
var paths = map[string]string{
	"Namespace":          "/api/v1/namespaces/%[2]s",
	"ServiceAccount":     "/api/v1/namespaces/%[1]s/serviceaccounts/%[2]s",
	"ClusterRole":        "/apis/rbac.authorization.k8s.io/v1/clusterroles/%[2]s",
	"ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/%[2]s",
}

// ApplyRBAC applies rbac.yaml as it is now, whatever an earlier version left.
func (c *Client) ApplyRBAC(ctx context.Context) error {
	for _, doc := range bytes.Split(rbac, []byte("\n---\n")) {
		var object struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal(doc, &object); err != nil {
			return err
		}
		path, ok := paths[object.Kind]
		if !ok {
			return fmt.Errorf("rbac.yaml: kind %q is not known here", object.Kind)
		}
		path = fmt.Sprintf(path, object.Metadata.Namespace, object.Metadata.Name)
		err := c.do(ctx, http.MethodPatch, path+"?fieldManager=devcluster&force=true", "application/apply-patch+yaml", doc)
		if err != nil {
			return fmt.Errorf("%s %s: %w", object.Kind, object.Metadata.Name, err)
		}
	}
	return nil
}

// do sends a request and drops the answer; a status above 299 is an error.
func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode > 299 {
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return nil
}
