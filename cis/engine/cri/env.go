package cri

import (
	"strings"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// expand replaces $(NAME) by what lookup knows, as core/v1 has it for env, command and args: a reference that is not
// known stays as it is, $$ is a dollar sign, anything else is left alone.
func expand(s string, lookup map[string]string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				// Not closed: the rest cannot hold a reference either.
				b.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if v, ok := lookup[name]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+3+end])
			}
			i += 2 + end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// expandAll expands each element of a command line.
func expandAll(list []string, lookup map[string]string) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = expand(s, lookup)
	}
	return out
}

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
			value = expand(value, known)
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
