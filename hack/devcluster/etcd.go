package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
)

// Etcd is the cluster's only etcd member. It answers to the API server's
// certificate alone: who reads it reads every secret.
type Etcd struct {
	Endpoint string
	server   *embed.Etcd
}

// StartEtcd starts etcd on DIR/etcd and waits until it serves.
func StartEtcd(ctx context.Context, o Options, pki PKI) (*Etcd, error) {
	c := embed.NewConfig()
	c.Dir = filepath.Join(o.Dir, "etcd")
	c.LogLevel = "error"
	c.UnsafeNoFsync = o.NoFsync
	// A lone member need not wait long to elect itself.
	c.TickMs, c.ElectionMs = 50, 500
	tls := transport.TLSInfo{
		CertFile: pki.cert("etcd"), KeyFile: pki.key("etcd"),
		TrustedCAFile: pki.cert("etcd-ca"), ClientCertAuth: true,
	}
	c.ClientTLSInfo, c.PeerTLSInfo = tls, tls
	client, err := loopbackURL(ctx)
	if err != nil {
		return nil, err
	}
	peer, err := loopbackURL(ctx)
	if err != nil {
		return nil, err
	}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)

	server, err := embed.StartEtcd(c)
	if err != nil {
		return nil, err
	}
	e := &Etcd{Endpoint: client.String(), server: server}
	select {
	case <-server.Server.ReadyNotify():
		return e, nil
	case err = <-server.Err():
	case <-server.Server.StopNotify():
		err = errors.New("stopped while starting")
	case <-time.After(time.Minute):
		err = errors.New("not ready within a minute")
	case <-ctx.Done():
		err = ctx.Err()
	}
	server.Close()
	return nil, err
}

// Wait returns nil when ctx ends, or why etcd has ended before.
func (e *Etcd) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.server.Err():
		return err
	case <-e.server.Server.StopNotify():
		return errors.New("stopped")
	}
}

// Close stops etcd. All that it has acknowledged is on disk.
func (e *Etcd) Close() { e.server.Close() }

// loopbackURL is a URL of a port that is free now.
func loopbackURL(ctx context.Context) (url.URL, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return url.URL{}, fmt.Errorf("find a free port: %w", err)
	}
	return url.URL{Scheme: "https", Host: l.Addr().String()}, l.Close()
}
