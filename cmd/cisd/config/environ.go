package config

import (
	"reflect"
	"sort"
	"strings"

	"cumulet.io/internal/strictyaml"
)

// EnvPrefix begins every environment variable that the server reads.
const EnvPrefix = "CUMULET_"

// fromEnviron finds the variables that name a key of the configuration, as CUMULET_REGISTRY_LISTEN for registry.listen.
// Others with the prefix are left alone: the build's and the tests' own begin with it too.
func fromEnviron(environ []string) [][2]string {
	keys := map[string]string{}
	collect("", reflect.TypeFor[Config](), keys)
	var out [][2]string
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if key, ok := keys[name]; ok {
			out = append(out, [2]string{key, value})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i][0] < out[j][0] })
	return out
}

func collect(path string, t reflect.Type, keys map[string]string) {
	for name, ft := range strictyaml.Fields(t) {
		key := strings.TrimPrefix(path+"."+name, ".")
		if ft.Kind() == reflect.Struct {
			collect(key, ft, keys)
			continue
		}
		keys[EnvPrefix+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = key
	}
}
