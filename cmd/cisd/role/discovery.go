package role

import (
	"encoding/json"
	"net/http"
)

// discovery tells clients where the other services are; it is the one path that needs no token.
func (p *process) discovery(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/discovery", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{ //nolint:errcheck // the client has gone
			"registry": p.cfg.Registry.URL, "control": p.cfg.Control.URL, "logs": p.cfg.Logs.URL, "billing": p.cfg.Billing.URL,
		})
	})
	mux.Handle("/", next)
	return mux
}
