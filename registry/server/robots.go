package server

import (
	"net/http"
	"strconv"
	"time"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/hubtoken"
)

func (s *Server) listRobots(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	limit, after, err := pageOf(r)
	if err != nil {
		return nil, err
	}
	robots, err := s.directory.Robots(r.Context(), org, after, limit)
	return paged(robots, limit, func(r registry.RobotAccount) string { return r.Name }), err
}

func (s *Server) createRobot(w http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	var n registry.NewRobot
	if err := readJSON(w, r, &n); err != nil {
		return nil, err
	}
	made, secret, err := s.directory.CreateRobot(r.Context(), registry.RobotAccount{Org: org, Name: n.Name, Description: n.Description, Scopes: n.Scopes, Expires: n.Expires})
	if err != nil {
		return nil, err
	}
	return registry.RobotSecret{RobotAccount: *made, Secret: secret}, nil
}

func (s *Server) getRobot(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	return s.directory.Robot(r.Context(), org, r.PathValue("robot"))
}

func (s *Server) patchRobot(w http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	var c registry.RobotChange
	if err := readJSON(w, r, &c); err != nil {
		return nil, err
	}
	return s.directory.UpdateRobot(r.Context(), org, r.PathValue("robot"), directory.RobotPatch(c))
}

func (s *Server) deleteRobot(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	return nil, s.directory.DeleteRobot(r.Context(), org, r.PathValue("robot"))
}

func (s *Server) rotateRobot(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	robot, secret, err := s.directory.RotateRobot(r.Context(), org, r.PathValue("robot"))
	if err != nil {
		return nil, err
	}
	return registry.RobotSecret{RobotAccount: *robot, Secret: secret}, nil
}

func (s *Server) orgAudit(_ http.ResponseWriter, r *http.Request) (any, error) {
	org := r.PathValue("org")
	if err := mayManage(r, org, hubtoken.ActionAdmin); err != nil {
		return nil, err
	}
	return s.auditLog(r, directory.AuditFilter{Org: org})
}

// platformAudit answers with the entries of every org and of the platform, or with ?org= of one.
func (s *Server) platformAudit(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := mayPlatform(r); err != nil {
		return nil, err
	}
	org := r.URL.Query().Get("org")
	return s.auditLog(r, directory.AuditFilter{Org: org, All: org == ""})
}

// auditLog answers with a page of entries, newest first, chosen by actor, action, target, denied, since and until.
func (s *Server) auditLog(r *http.Request, f directory.AuditFilter) (any, error) {
	q := r.URL.Query()
	var after string
	var err error
	if f.Limit, after, err = pageOf(r); err != nil {
		return nil, err
	}
	if after != "" {
		if f.Before, err = strconv.ParseInt(after, 10, 64); err != nil || f.Before < 1 {
			return nil, problem.Invalid("after", "must be next of an earlier page", after)
		}
	}
	f.Actor, f.Action, f.Target = q.Get("actor"), q.Get("action"), q.Get("target")
	if text := q.Get("denied"); text != "" {
		denied, err := strconv.ParseBool(text)
		if err != nil {
			return nil, problem.Invalid("denied", "must be true or false", text)
		}
		f.Denied = &denied
	}
	for _, bound := range []struct {
		name string
		at   *time.Time
	}{{"since", &f.Since}, {"until", &f.Until}} {
		text := q.Get(bound.name)
		if text == "" {
			continue
		}
		if *bound.at, err = time.Parse(time.RFC3339Nano, text); err != nil || bound.at.Year() < 1970 || bound.at.Year() > 2200 {
			return nil, problem.Invalid(bound.name, "must be a time as 2026-11-22T10:00:00Z", text)
		}
	}
	entries, err := s.directory.AuditLog(r.Context(), f)
	return paged(entries, f.Limit, func(e registry.AuditEntry) string { return strconv.FormatInt(e.ID, 10) }), err
}
