package cri

import (
	"strings"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// environ gives the environment of a container and the same as a map, for the expansion of its command line. fields
// are the values of EnvVar.Field. A name given twice has its last value, at the place of the first.
func environ(vars []cis.EnvVar, fields map[string]string) ([]*rt.KeyValue, map[string]string) {
	known := make(map[string]string, len(vars))
	at := make(map[string]int, len(vars))
	out := make([]*rt.KeyValue, 0, len(vars))
	for _, v := range vars {
		value := v.Value
		switch {
		case v.Field != "":
			value = fields[v.Field]
		case v.Expand:
			value = cis.Expand(value, cis.Known(known))
		}
		known[v.Name] = value
		if i, ok := at[v.Name]; ok {
			out[i].Value = []byte(value)
			continue
		}
		at[v.Name] = len(out)
		out = append(out, &rt.KeyValue{Key: v.Name, Value: []byte(value)})
	}
	return out, known
}

// envFields are the values known only when the sandbox is up.
func envFields(ips []string, hostIP string) map[string]string {
	f := map[string]string{"status.podIPs": strings.Join(ips, ","), "status.hostIP": hostIP, "status.hostIPs": hostIP}
	if len(ips) > 0 {
		f["status.podIP"] = ips[0]
	}
	return f
}
