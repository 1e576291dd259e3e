package vnode

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"os"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

const (
	// selfSignedLife is long enough for any process, and short enough for every client.
	selfSignedLife = 365 * 24 * time.Hour
	// certCheck is how often the certificate's file is looked at.
	certCheck = 30 * time.Second
)

// tls is the kubelet API's configuration. A client's certificate is asked for and not required: who the client is, is for
// authentication to say.
func (n *Node) tls() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"}}
	if n.cfg.CertFile == "" {
		cert, err := selfSigned(n.cfg.Name, n.cfg.Address, time.Now())
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{*cert}
		return c, nil
	}
	files := &certFiles{cert: n.cfg.CertFile, key: n.cfg.KeyFile}
	if _, err := files.get(nil); err != nil {
		return nil, err
	}
	c.GetCertificate = files.get
	return c, nil
}

// selfSigned makes a certificate for the node's name and address.
func selfSigned(name, address string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfSignedLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{name}, IPAddresses: []net.IP{net.ParseIP(address)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// certFiles reads a certificate again when its file has changed. A pair that cannot be read leaves the old one in use.
type certFiles struct {
	cert, key string

	mu      sync.Mutex
	loaded  *tls.Certificate
	changed time.Time
	checked time.Time
}

func (f *certFiles) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.loaded != nil && now.Sub(f.checked) < certCheck {
		return f.loaded, nil
	}
	f.checked = now
	info, err := os.Stat(f.cert)
	if err == nil && (f.loaded == nil || !info.ModTime().Equal(f.changed)) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(f.cert, f.key); err == nil {
			f.loaded, f.changed = &pair, info.ModTime()
		}
	}
	if f.loaded == nil {
		return nil, fmt.Errorf("certificate of the kubelet API: %w", err)
	}
	return f.loaded, nil
}

// clientCA keeps the certificates that clients' certificates are checked by up to date with their file.
type clientCA struct {
	content *dynamiccertificates.DynamicFileCAContent
}

func (c clientCA) run(ctx context.Context) error {
	if c.content != nil {
		c.content.Run(ctx, 1)
	}
	return nil
}

// webhookAuth asks the API server who a client is, by token, and what it may do; a certificate of the client CA tells who, too.
func (n *Node) webhookAuth() (nodeutil.Auth, error) {
	if n.cfg.ClientCAFile != "" {
		content, err := dynamiccertificates.NewDynamicCAContentFromFile("client-ca", n.cfg.ClientCAFile)
		if err != nil {
			return nil, fmt.Errorf("client CA: %w", err)
		}
		n.clientCA.content = content
	}
	auth, err := nodeutil.WebhookAuth(n.beat, n.cfg.Name, func(c *nodeutil.WebhookAuthConfig) error {
		c.AuthnConfig.TokenAccessReviewTimeout = startTimeout
		if n.clientCA.content != nil {
			c.AuthnConfig.ClientCertificateCAContentProvider = n.clientCA.content
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("authentication: %w", err)
	}
	return auth, nil
}
