package registry

import (
	_ "embed" // for the document
)

//go:embed openapi.yaml
var openAPI string

// OpenAPI gives the OpenAPI 3.1 document of the registry's HTTP API but for /v2/, which is the OCI distribution
// specification's.
func OpenAPI() []byte { return []byte(openAPI) }
