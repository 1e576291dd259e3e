package server

import (
	"net/http"

	"cumulet.io/cis"
	"cumulet.io/registry/hubtoken"
)

func (s *server) quota(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	out, err := s.svc.Quota(r.Context(), r.PathValue("org"))
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}

func (s *server) setQuota(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	if err := wantJSON(r); err != nil {
		return err
	}
	want, err := cis.DecodeQuota(http.MaxBytesReader(w, r.Body, cis.MaxUpdateBytes))
	if err != nil {
		return err
	}
	return s.changeQuota(w, r, want)
}

func (s *server) unsetQuota(w http.ResponseWriter, r *http.Request) error {
	if q := query(r); q.Err() != nil {
		return q.Err()
	}
	return s.changeQuota(w, r, nil)
}

func (s *server) changeQuota(w http.ResponseWriter, r *http.Request, want *cis.Quota) error {
	out, err := s.svc.SetQuota(r.Context(), r.PathValue("org"), hubtoken.FromContext(r.Context()).Subject, want)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}
