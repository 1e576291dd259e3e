package server

import (
	"context"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// TestDocument: the document is valid, and it and the handlers have the same operations.
func TestDocument(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(context.Background()); err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, rt := range (&server{}).routes() {
		served[rt.method+" "+rt.path] = true
	}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			if !served[method+" "+path] {
				t.Errorf("%s %s is in the document and not served", method, path)
			}
			delete(served, method+" "+path)
		}
	}
	for rt := range served {
		t.Errorf("%s is served and not in the document", rt)
	}
}
