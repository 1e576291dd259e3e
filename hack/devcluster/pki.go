package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// How long certificates are valid, and how long before their end a start makes
// new ones.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	renewal  = 60 * 24 * time.Hour
)

// PKI is the cluster's certificates and keys, as files NAME.crt and NAME.key in
// one directory.
type PKI struct{ dir string }

func (p PKI) path(name string) string { return filepath.Join(p.dir, name) }
func (p PKI) cert(name string) string { return p.path(name + ".crt") }
func (p PKI) key(name string) string  { return p.path(name + ".key") }

// leaf is a certificate to have.
type leaf struct {
	name   string // of its files
	ca     string // that signs it
	cn     string
	groups []string
	sans   []string // host names and addresses; none for a client
	config bool     // NAME.kubeconfig is to be made of it
}

// LoadPKI makes the certificates and kubeconfigs that are missing, near their
// end or for other names. Authorities and the service accounts' key stay.
func LoadPKI(o Options, server string) (PKI, error) {
	p := PKI{dir: o.Dir}
	local := []string{"localhost", "127.0.0.1", "::1"}
	node := append([]string{o.NodeName}, local...)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return p, err
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			node = append(node, ip.IP.String())
		}
	}
	node = append(node, o.NodeIPs...)
	leaves := []leaf{
		{name: "apiserver", ca: "ca", cn: "kube-apiserver", sans: append([]string{
			"10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, local...)},
		{name: "apiserver-kubelet-client", ca: "ca", cn: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{name: "admin", ca: "ca", cn: "admin", groups: []string{"system:masters"}, config: true},
		{name: "controller-manager", ca: "ca", cn: "system:kube-controller-manager", config: true},
		{name: "scheduler", ca: "ca", cn: "system:kube-scheduler", config: true},
		// The virtual node is a user of its own: a system:node identity may not
		// list the secrets that its pods will need.
		{name: "kubelet-client", ca: "ca", cn: "cumulet-kubelet", config: true},
		{name: "kubelet", ca: "ca", cn: o.NodeName, sans: node},
		{name: "front-proxy-client", ca: "front-proxy-ca", cn: "front-proxy-client"},
		{name: "etcd", ca: "etcd-ca", cn: "etcd", sans: local},
	}
	for _, name := range []string{"ca", "front-proxy-ca", "etcd-ca"} {
		if err := p.ensureCA(name); err != nil {
			return p, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := p.ensureServiceAccountKey(); err != nil {
		return p, fmt.Errorf("service accounts' key: %w", err)
	}
	for _, l := range leaves {
		if err := p.ensureLeaf(l); err != nil {
			return p, fmt.Errorf("%s: %w", l.name, err)
		}
		if l.config {
			if err := p.writeKubeconfig(l.name, server); err != nil {
				return p, fmt.Errorf("%s: %w", l.name, err)
			}
		}
	}
	return p, nil
}

func (p PKI) ensureCA(name string) error {
	if _, err := p.load(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.issue(name, "", &x509.Certificate{
		Subject: pkix.Name{CommonName: "devcluster " + name}, NotAfter: time.Now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
}

func (p PKI) ensureLeaf(l leaf) error {
	want := &x509.Certificate{
		Subject: pkix.Name{CommonName: l.cn, Organization: l.groups}, NotAfter: time.Now().Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(l.sans) > 0 {
		want.ExtKeyUsage = append(want.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	slices.Sort(l.sans)
	for _, s := range slices.Compact(l.sans) {
		if ip := net.ParseIP(s); ip != nil {
			want.IPAddresses = append(want.IPAddresses, ip)
		} else {
			want.DNSNames = append(want.DNSNames, s)
		}
	}
	have, err := p.load(l.name)
	if err == nil && have.NotAfter.After(time.Now().Add(renewal)) && have.Subject.CommonName == l.cn &&
		slices.Equal(have.DNSNames, want.DNSNames) && slices.EqualFunc(have.IPAddresses, want.IPAddresses, net.IP.Equal) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return p.issue(l.name, l.ca, want)
}

// load reads a certificate whose key is there, too.
func (p PKI) load(name string) (*x509.Certificate, error) {
	if _, err := p.loadKey(name); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(p.cert(name))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", p.cert(name))
	}
	return x509.ParseCertificate(block.Bytes)
}

func (p PKI) loadKey(name string) (crypto.Signer, error) {
	b, err := os.ReadFile(p.key(name))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", p.key(name))
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a %T cannot sign", p.key(name), k)
	}
	return signer, nil
}

// issue makes a new key and its certificate, signed by ca or, without one, by
// itself.
func (p PKI) issue(name, ca string, template *x509.Certificate) error {
	key, err := p.newKey(name)
	if err != nil {
		return err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return err
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	parent, signer := template, crypto.Signer(key)
	if ca != "" {
		if parent, err = p.load(ca); err != nil {
			return err
		}
		if signer, err = p.loadKey(ca); err != nil {
			return err
		}
	}
	b, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	return writeFile(p.cert(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b}), 0o644)
}

func (p PKI) newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(p.key(name), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}), 0o600)
}

// ensureServiceAccountKey makes service-accounts.key and .pub, which sign and
// verify service account tokens.
func (p PKI) ensureServiceAccountKey() error {
	const name = "service-accounts"
	key, err := p.loadKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = p.newKey(name)
	}
	if err != nil {
		return err
	}
	b, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return writeFile(p.path(name+".pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}), 0o644)
}
