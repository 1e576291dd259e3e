package weblogin

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"cumulet.io/internal/problem"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
)

// cookie binds a login to the browser in which the person has confirmed it.
const cookie = "cumulet_login"

// maxFormBytes bounds the body of the form.
const maxFormBytes = 16 << 10

// page is what a person sees.
type page struct {
	Title, Text string
	// Ask shows the form: with Code filled in, and Token against forged ones (OWASP, "double submit cookie").
	Ask         bool
	Code, Token string
	// Providers are the names of those that there are to choose from.
	Providers []string
}

// layout is loaded with no script, and from nowhere else.
const layout = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:28rem;margin:15vh auto;padding:0 1rem;color:#222;background:#fff}
input{font:1.6rem monospace;letter-spacing:.1em;width:100%;padding:.4rem;box-sizing:border-box;text-transform:uppercase}
button{font:inherit;margin-top:1rem;padding:.6rem 1.2rem;border:0;border-radius:4px;background:#14508c;color:#fff}</style></head>
<body><h1>{{.Title}}</h1><p>{{.Text}}</p>
{{if .Ask}}<form method="post" action="/login"><input type="hidden" name="token" value="{{.Token}}">
<label>Code <input name="code" value="{{.Code}}" autocomplete="off" spellcheck="false" maxlength="20" required autofocus></label>
{{range .Providers}}<button name="provider" value="{{.}}">Go on with {{.}}</button> {{end}}</form>{{end}}</body></html>
`

// Register puts the endpoints on a mux: /token/device for the command line, /login for browsers.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /token/device", s.begin)
	mux.HandleFunc("GET /login", s.ask)
	mux.Handle("POST /login", s.sameOrigin.Handler(http.HandlerFunc(s.confirm)))
	mux.HandleFunc("GET "+callbackPath+"{provider}", s.callback)
}

// begin answers a device authorization request (RFC 8628, section 3.1). The only client is the command line: its id
// decides nothing.
func (s *Service) begin(w http.ResponseWriter, r *http.Request) {
	d, err := s.Begin(r.Context(), "")
	if err != nil {
		if problem.Write(w, err) >= http.StatusInternalServerError {
			s.cfg.Logger.ErrorContext(r.Context(), "a login cannot begin", "error", err)
		}
		return
	}
	WriteAuthorization(w, d)
}

func (s *Service) show(w http.ResponseWriter, status int, p page) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	t, err := template.New("page").Parse(layout)
	if err == nil {
		err = t.Execute(w, p)
	}
	if err != nil {
		s.cfg.Logger.Debug("a page is not shown whole", "error", err)
	}
}

func (s *Service) showError(w http.ResponseWriter, r *http.Request, err error) {
	d := problem.Of(err)
	if d.Status >= http.StatusInternalServerError && !errors.Is(err, problem.ErrUnavailable) && r.Context().Err() == nil {
		s.cfg.Logger.ErrorContext(r.Context(), "a login by browser failed", "error", err)
	}
	s.show(w, d.Status, page{Title: "Not logged in", Text: upper(d.Detail) + "."})
}

func upper(text string) string {
	if text == "" {
		return "Something went wrong"
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// setCookie gives the browser a secret, or with "" takes it away.
func (s *Service) setCookie(w http.ResponseWriter, value string) {
	c := &http.Cookie{Name: cookie, Value: value, Path: "/login", HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: strings.HasPrefix(s.cfg.PublicURL, "https://"), MaxAge: int(directory.DeviceLife.Seconds())}
	if value == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// ask shows the form in which the person compares the code with the one that their command line shows: who was sent a
// link by somebody else has no such code there (RFC 8628, section 5.4).
func (s *Service) ask(w http.ResponseWriter, r *http.Request) {
	token := ""
	if c, err := r.Cookie(cookie); err == nil && len(c.Value) <= 64 {
		token = c.Value
	}
	if token == "" {
		token = rand.Text()
	}
	s.setCookie(w, token)
	p := page{Title: "Log in", Ask: true, Token: token, Providers: s.offered(r.URL.Query().Get("provider")),
		Text: "A command line wants to log in as you. Go on only if you have just started it yourself and it shows this code."}
	if code := r.URL.Query().Get("code"); code != "" && len(code) <= 20 {
		link, err := s.cfg.Directory.DeviceLink(r.Context(), code)
		if err != nil {
			s.showError(w, r, err)
			return
		}
		p.Code = code
		if link != "" {
			p.Title = "Link an identity"
			p.Text = "The account " + link + " wants to be linked to your identity at " + strings.Join(p.Providers, " or ") + ". Go on only if you are " + link +
				" and your command line shows this code."
		}
	}
	s.show(w, http.StatusOK, p)
}

// offered gives the names of the providers to choose from: the one that is asked for, or all.
func (s *Service) offered(asked string) []string {
	if s.client(asked) != nil {
		return []string{asked}
	}
	var names []string
	for _, c := range s.clients {
		names = append(names, c.Name)
	}
	return names
}

// confirm sends the browser to the provider that was chosen.
func (s *Service) confirm(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	c, err := r.Cookie(cookie)
	if err != nil || r.ParseForm() != nil || c.Value == "" || subtle.ConstantTimeCompare([]byte(c.Value), []byte(r.PostForm.Get("token"))) != 1 {
		s.showError(w, r, problem.New(problem.ErrForbidden, "this form is not of this browser, or cookies are off: open the login page again"))
		return
	}
	chosen := s.client(r.PostForm.Get("provider"))
	if chosen == nil {
		s.showError(w, r, problem.Invalid("provider", "must be one of "+strings.Join(s.offered(""), ", "), r.PostForm.Get("provider")))
		return
	}
	p, err := chosen.discover(ctx)
	if err != nil {
		s.showError(w, r, err)
		return
	}
	state := rand.Text() + rand.Text()
	b := directory.BrowserLogin{Provider: chosen.Name, Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier()}
	if err := s.cfg.Directory.BeginBrowser(ctx, r.PostForm.Get("code"), c.Value, state, b); err != nil {
		s.showError(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, chosen.oauth(p).AuthCodeURL(state, oidc.Nonce(b.Nonce), oauth2.S256ChallengeOption(b.Verifier)), http.StatusSeeOther)
}

// callback takes the browser back from the provider, and ends the login.
func (s *Service) callback(w http.ResponseWriter, r *http.Request) {
	ctx, q := r.Context(), r.URL.Query()
	browser := ""
	if c, err := r.Cookie(cookie); err == nil {
		browser = c.Value
	}
	b, err := s.cfg.Directory.EndBrowser(ctx, browser, q.Get("state"))
	if err != nil {
		s.showError(w, r, err)
		return
	}
	s.setCookie(w, "")
	var i *registry.Identity
	account := ""
	if c := s.client(b.Provider); c == nil || c.Name != r.PathValue("provider") || !c.isFrom(q) {
		err = problem.New(problem.ErrUnauthenticated, "this is not the answer of the provider that you were sent to")
	} else if q.Get("code") == "" {
		err = problem.New(problem.ErrUnauthenticated, "the provider did not log you in")
	} else {
		i, account, err = c.finish(r, q.Get("code"), b)
	}
	if err != nil {
		account = ""
		s.auditRefused(r, i, err)
	}
	if ferr := s.cfg.Directory.FinishDevice(ctx, b, account); ferr != nil && err == nil {
		err = ferr
	}
	if err != nil {
		s.showError(w, r, err)
		return
	}
	text := "You are logged in as " + account + ". Go back to your command line and close this page."
	if b.Link != "" {
		text = "Your identity is linked to the account " + account + ". Go back to your command line and close this page."
	}
	s.show(w, http.StatusOK, page{Title: "Done", Text: text})
}

// isFrom tells whether an answer is this provider's, as far as it says (RFC 9207, section 2.4).
func (c *client) isFrom(answer url.Values) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !answer.Has("iss") {
		return !c.iss
	}
	return answer.Get("iss") == c.Issuer
}

func (c *client) finish(r *http.Request, code string, b *directory.BrowserLogin) (*registry.Identity, string, error) {
	i, said, err := c.identify(r.Context(), code, b)
	if err != nil {
		return nil, "", err
	}
	if b.Link == "" {
		account, err := c.account(r.Context(), i, said)
		if err != nil {
			return i, account, err
		}
		i.Account = account
	} else {
		i.Account = b.Link
		ctx := registry.WithActor(r.Context(), registry.Actor{Name: b.Link, Address: registry.ActorFrom(r.Context()).Address})
		if err := c.s.cfg.Directory.LinkIdentity(ctx, *i); err != nil {
			return i, "", err
		}
	}
	return i, i.Account, c.setGroups(r.Context(), *i, said)
}

func (s *Service) auditRefused(r *http.Request, i *registry.Identity, err error) {
	if s.cfg.Auditor == nil {
		return
	}
	e := registry.AuditEntry{Address: registry.ActorFrom(r.Context()).Address, Action: "login", Denied: true,
		Detail: map[string]string{"reason": problem.Of(err).Detail}}
	if i != nil {
		// Who it is here was not found out: the name that the provider gives proves nothing.
		e.Detail["provider"], e.Detail["issuer"], e.Detail["subject"], e.Detail["account"] = i.Provider, i.Issuer, i.Subject, i.Account
	}
	if err := s.cfg.Auditor.Audit(r.Context(), e); err != nil {
		s.cfg.Logger.ErrorContext(r.Context(), "a denial is not in the audit log", "error", err)
	}
}
