package server

// Routes gives every route as "METHOD path access", for the tests that must leave none out.
func Routes() (list []struct{ Method, Path, Access string }) {
	for _, r := range (&server{}).routes() {
		list = append(list, struct{ Method, Path, Access string }{r.method, r.path, string(r.access)})
	}
	return list
}

// OpenAPI is the embedded document.
func OpenAPI() []byte { return openAPI }
