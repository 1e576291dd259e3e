package main

import (
	"os"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// writeKubeconfig makes a kubeconfig of the named client certificate, complete
// in itself, so that it may be copied away. The virtual node's is
// kubelet.kubeconfig.
func (p PKI) writeKubeconfig(name, server string) error {
	var content [3][]byte
	for i, path := range []string{p.cert("ca"), p.cert(name), p.key(name)} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content[i] = b
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["cumulet-dev"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: content[0]}
	c.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: content[1], ClientKeyData: content[2]}
	c.Contexts["cumulet-dev"] = &clientcmdapi.Context{Cluster: "cumulet-dev", AuthInfo: name, Namespace: "default"}
	c.CurrentContext = "cumulet-dev"
	b, err := clientcmd.Write(*c)
	if err != nil {
		return err
	}
	return writeFile(p.path(strings.TrimSuffix(name, "-client")+".kubeconfig"), b, 0o600)
}
