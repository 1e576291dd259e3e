package server

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"

	"cumulet.io/cis"
)

func (s *server) create(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	if err := wantJSON(r); err != nil {
		return err
	}
	req, err := cis.DecodeCreate(http.MaxBytesReader(w, r.Body, cis.MaxCreateBytes))
	if err != nil {
		return err
	}
	in, created, err := s.svc.Create(r.Context(), r.PathValue("org"), *req)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	w.Header().Set("Location", fmt.Sprintf("/v1/orgs/%s/instances/%s", in.Org, in.ID))
	return answerInstance(w, status, in)
}

// answerInstance answers with an instance and its version as entity tag.
func answerInstance(w http.ResponseWriter, status int, in *cis.Instance) error {
	w.Header().Set("ETag", etag(in))
	return answer(w, status, in)
}

func etag(in *cis.Instance) string { return `"` + strconv.FormatInt(in.Version, 10) + `"` }

func (s *server) get(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	in, err := s.svc.Get(r.Context(), r.PathValue("org"), r.PathValue("id"))
	if err != nil {
		return err
	}
	if r.Header.Get("If-None-Match") == etag(in) {
		w.Header().Set("ETag", etag(in))
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return answerInstance(w, http.StatusOK, in)
}

func (s *server) list(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "node", "label…", "live", "limit", "cursor")
	req := cis.ListRequest{Node: q.Text("node", 253), Labels: q.Labels("label", 64), Live: q.Flag("live"), Cursor: q.Text("cursor", 256)}
	if n := q.Number("limit", 1, 1000); n != nil {
		req.Limit = int(*n)
	}
	if q.Err() != nil {
		return q.Err()
	}
	page, err := s.svc.List(r.Context(), r.PathValue("org"), req)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, page)
}

func (s *server) delete(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "graceSeconds")
	grace := q.Number("graceSeconds", 0, math.MaxInt32)
	if q.Err() != nil {
		return q.Err()
	}
	in, err := s.svc.Delete(r.Context(), r.PathValue("org"), r.PathValue("id"), grace)
	if err != nil {
		return err
	}
	return answerInstance(w, http.StatusOK, in)
}

func (s *server) updateVolume(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	if err := wantJSON(r); err != nil {
		return err
	}
	files, err := cis.DecodeFiles(http.MaxBytesReader(w, r.Body, cis.MaxUpdateBytes))
	if err != nil {
		return err
	}
	if err := s.svc.UpdateVolume(r.Context(), r.PathValue("org"), r.PathValue("id"), r.PathValue("volume"), *files); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// items is the body of a list without pages; never null.
type items[T any] struct {
	Items []T `json:"items"`
}

func answerItems[T any](w http.ResponseWriter, list []T) error {
	if list == nil {
		list = []T{}
	}
	return answer(w, http.StatusOK, items[T]{list})
}

func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	list, err := s.svc.Events(r.Context(), r.PathValue("org"), r.PathValue("id"))
	if err != nil {
		return err
	}
	return answerItems(w, list)
}

func (s *server) stats(w http.ResponseWriter, r *http.Request) error {
	q := query(r, "id…")
	ids := q.List("id", 1000)
	if q.Err() != nil {
		return q.Err()
	}
	list, err := s.svc.Stats(r.Context(), r.PathValue("org"), slices.Clone(ids))
	if err != nil {
		return err
	}
	return answerItems(w, list)
}

func (s *server) sandboxes(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	out, err := s.svc.Sandboxes(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}
