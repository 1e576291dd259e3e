package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cumulet.io/cmd/cis/session"
	"cumulet.io/internal/sqldb/sqldbtest"
	"cumulet.io/internal/testenv"
	"cumulet.io/registry"
	"cumulet.io/registry/directory"
	"cumulet.io/registry/server"
	"cumulet.io/registry/weblogin"
)

// platform is a registry with discovery. admin, who owns demo, has the password "pass-of-admin".
type platform struct {
	t   *testing.T
	url string
	dir string
	reg *server.Server
	// control is the container instance service's address, where there is one.
	control string
}

func startPlatform(t *testing.T, options ...func(*server.Config)) *platform {
	t.Helper()
	p := &platform{t: t, dir: t.TempDir()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.url = "http://" + l.Addr().String()
	cfg := server.Config{DB: sqldbtest.Open(t, sqldbtest.SQLite(t)), Dir: p.dir, PublicURL: p.url,
		HashCost:  directory.HashCost{MemoryKiB: 64, Passes: 1},
		Bootstrap: directory.Bootstrap{Admin: directory.Credential{Name: "admin", Password: "pass-of-admin"}, Org: "demo"},
		Logger:    slog.New(slog.DiscardHandler)}
	for _, o := range options {
		o(&cfg)
	}
	p.reg, err = server.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", p.reg)
	mux.HandleFunc("GET /v1/discovery", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(session.Endpoints{Registry: p.url, Control: cmp.Or(p.control, p.url), Logs: p.url, Billing: p.url})
	})
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}}
	srv.Start()
	t.Cleanup(func() {
		srv.Close()
		if err := p.reg.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// cis runs a command line in a session of a name, with in on standard input, and gives exit code and output.
func (p *platform) cis(in, as string, args ...string) (code int, out, errs string) {
	p.t.Helper()
	var stdout, stderr bytes.Buffer
	args = append([]string{"--session", filepath.Join(p.dir, as+".json")}, args...)
	code = Main(context.Background(), Env{In: strings.NewReader(in), Out: &stdout, Err: &stderr}, args)
	return code, stdout.String(), stderr.String()
}

func TestPeopleCommands(t *testing.T) {
	p := startPlatform(t)
	secrets := map[string]string{}
	keep := ""
	for _, tc := range []struct {
		as, in, line string
		code         int
		want         string // in the output, or in the error where the code is not 0
		keep         string // the name under which the output is kept, to be given as "{name}" in in
	}{
		{"admin", "wrong", "login URL -u admin --org demo --password-stdin", 3, "the user name or the password is wrong", ""},
		{"admin", "pass-of-admin", "login URL -u admin --org demo --password-stdin", 0, "logged in as admin, org demo", ""},
		{"admin", "", "acount show", 2, `unknown command "acount" for "cis"; did you mean "account"?`, ""},
		{"admin", "", "account shwo", 2, `did you mean "show"?`, ""},
		{"admin", "", "account show", 0, "demo:owner", ""},
		{"admin", "", "account create zoe", 0, "", "zoe"},
		{"admin", "", "account create zoe", 1, "exists", ""},
		{"admin", "", "account ls", 0, "zoe     person   enabled", ""},
		{"admin", "", "member set zoe writer", 0, "zoe is writer of demo", ""},
		{"admin", "", "member set zoe king", 2, "role: must be owner", ""},
		{"admin", "", "member set ghost reader", 4, `no account "ghost"`, ""},
		{"admin", "", "team create web --description builders", 0, "demo has the team web", ""},
		{"admin", "", "team add web zoe", 0, "zoe in the team web", ""},
		{"admin", "", "team ls", 0, "builders", ""},
		{"admin", "", "member ls --team web", 0, "zoe       writer   web", ""},
		{"admin", "", "repo grant demo/web-* admin --team web", 0, "web is admin of demo/web-*", ""},
		{"admin", "", "repo grant demo/web-* admin", 2, "--team or --account", ""},
		{"admin", "", "repo grants", 0, "demo/web-*     team web   admin", ""},
		{"admin", "", "robot create ci --scope repository:demo/web-*:pull,push --scope org:demo:read,write --expires 90d", 0, "cumulet_rb_", "robot"},
		{"admin", "", "robot create bad --scope everything", 2, "--scope", ""},
		{"admin", "", "robot create bad --scope repository:other/x:pull", 2, "must be of the organisation demo", ""},
		{"admin", "", "robot create bad --scope repository:demo/x:pull --expires soon", 2, "write 90d", ""},
		{"admin", "", "robot ls", 0, "demo+ci   enabled   in 90d    never", ""},
		{"admin", "", "robot ls -o json", 0, `"account": "demo+ci"`, ""},
		{"admin", "", "org create shop", 0, "made the organisation shop", ""},
		{"admin", "", "org quota shop --gib 2 --repositories 5", 0, "shop may store 2 GiB in 5", ""},
		{"admin", "", "org ls --all", 0, "shop   owner   2 GiB", ""},
		{"admin", "", "org quota shop --default", 0, "default quota", ""},
		{"admin", "", "org rm shop", 0, "removed the organisation shop", ""},
		{"zoe", "{zoe}", "login URL -u zoe --org demo --password-stdin", 0, "logged in as zoe", ""},
		{"zoe", "", "member set admin reader", 3, "this needs admin", ""},
		{"zoe", "", "account ls", 3, "administrators", ""},
		{"zoe", "", "audit", 3, "this needs admin", ""},
		{"zoe", "", "apikey create laptop --scope org:demo:read", 0, "cumulet_ak_", "key"},
		{"zoe", "", "apikey ls", 0, "laptop   in 90d    never   org:demo:read", ""},
		{"zoe", "{zoe}\na new password", "account password --password-stdin", 0, "log in again", ""},
		{"zoe", "", "account show", 3, "no longer valid", ""},
		{"zoe", "a new password", "login URL -u zoe --org demo --password-stdin", 0, "logged in as zoe", ""},
		{"zoe", "", "account sessions", 0, "cis", ""},
		{"key", "{key}", "login URL -u zoe --org demo --password-stdin", 0, "logged in as zoe", ""},
		{"key", "", "member ls", 0, "zoe", ""},
		{"key", "", "apikey ls", 0, "laptop", ""},
		{"key", "", "apikey rm laptop", 3, "which a login by password or browser gives", ""},
		{"robot", "{robot}", "login URL -u demo+ci --password-stdin", 0, "logged in as demo+ci, org demo", ""},
		{"robot", "", "repo ls", 0, "NAME", ""},
		{"robot", "", "robot ls", 3, "this needs admin", ""},
		{"admin", "", "robot disable ci", 0, "disabled", ""},
		{"robot", "", "repo ls", 3, "no longer valid", ""},
		{"admin", "", "robot set ci --expires never --description builds", 0, "never", ""},
		{"admin", "", "robot set ci", 2, "nothing to change", ""},
		{"admin", "", "robot enable ci", 0, "enabled", ""},
		{"admin", "", "robot rotate ci", 0, "cumulet_rb_", ""},
		{"admin", "", "robot rm ci", 0, "removed the robot ci", ""},
		{"admin", "", "repo show demo", 2, "repository: must be", ""},
		{"admin", "", "repo public demo/web", 0, "public", ""},
		{"admin", "", "repo show demo/web -o wide", 0, "zoe", ""},
		{"admin", "", "repo revoke demo/web-* --team web", 0, "no grant", ""},
		{"admin", "", "team remove web zoe", 0, "zoe out of the team web", ""},
		{"admin", "", "team rm web", 0, "removed the team web", ""},
		{"admin", "", "member rm admin", 1, "would have no owner", ""},
		{"admin", "", "member rm zoe", 0, "zoe is out of demo", ""},
		{"admin", "", "account disable zoe", 0, "zoe cannot log in", ""},
		{"admin", "", "account enable zoe", 0, "zoe can log in", ""},
		{"admin", "", "account promote zoe", 0, "zoe administers", ""},
		{"admin", "", "account demote zoe", 0, "does not administer", ""},
		{"admin", "another password", "account reset-password zoe --password-stdin", 0, "new password", ""},
		{"zoe", "another password", "login URL -u zoe --org demo --password-stdin", 0, "logged in", ""},
		{"zoe", "", "logout", 0, "", ""},
		{"zoe", "", "account show", 3, "not logged in", ""},
		{"admin", "", "account rm zoe", 0, "removed the account zoe", ""},
		{"admin", "", "account link", 1, "no OpenID provider", ""},
		{"admin", "", "login URL --oidc", 1, "no OpenID provider", ""},
		{"admin", "", "audit --limit 0", 0, "robot.rotate", ""},
		{"admin", "", "audit --denied", 0, "PUT /v1/orgs/demo/members/admin", ""},
		{"admin", "", "audit --action member --actor admin --since 1d --changes", 0, "member.remove", ""},
		{"admin", "", "audit --since 30000d --until 29000d", 2, "since", ""},
		{"admin", "", "audit --all --target account/zoe", 0, "account.delete", ""},
		{"admin", "", "audit --org ghost", 4, "no organisation", ""},
		{"admin", "", "audit --org ghost --as-admin -o json", 0, "GET /v1/orgs/ghost/audit", ""},
	} {
		if strings.HasPrefix(tc.line, "repo public") {
			if err := p.reg.Directory().Pushed(t.Context(), "demo/web", "zoe"); err != nil {
				t.Fatal(err)
			}
		}
		in := tc.in
		for name, secret := range secrets {
			in = strings.ReplaceAll(in, "{"+name+"}", secret)
		}
		code, out, errs := p.cis(in, tc.as, strings.Fields(strings.ReplaceAll(tc.line, "URL", p.url))...)
		text := out
		if tc.code != 0 {
			text = errs
		}
		if code != tc.code || !strings.Contains(text, tc.want) {
			t.Errorf("%s: cis %s: exit %d, out %q, err %q; want %d and %q", tc.as, tc.line, code, out, errs, tc.code, tc.want)
		}
		if tc.keep != "" {
			secrets[tc.keep] = strings.TrimSpace(out)
		}
		keep += out + errs
	}
	// A login leaves no password, key or secret on the disk.
	files, err := filepath.Glob(filepath.Join(p.dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for what, secret := range secrets {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s has the secret of %s", name, what)
			}
		}
	}
	if !strings.Contains(keep, registry.ActorPlatform) {
		t.Error("the platform's own changes are not shown")
	}
}

// finish is the error output of a command: it finishes in a browser what the command asks the person to.
type finish struct {
	bytes.Buffer
	t    *testing.T
	user string
	last chan string
}

func (f *finish) Write(p []byte) (int, error) {
	if at := strings.Index(string(p), "http://"); at >= 0 {
		uri, _, _ := strings.Cut(string(p[at:]), "\n")
		go func() {
			_, page := testenv.NewBrowser(f.t).LogIn(uri, f.user)
			f.last <- page
		}()
	}
	return f.Buffer.Write(p)
}

func TestLoginByBrowser(t *testing.T) {
	p := startPlatform(t, func(c *server.Config) {
		c.OIDC = []weblogin.Provider{{Name: "corp", Issuer: testenv.OpenIDProvider(t, c.PublicURL+"/login/callback/corp", map[string]string{"ann@corp.example": "1", "boss@corp.example": "2", "admin@corp.example": "3"}).Issuer,
			ClientID: "cumulet", ClientSecret: "secret", SignUp: true, SignUpOrg: "demo"}}
	})
	run := func(as, user string, want int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		f := &finish{t: t, user: user, last: make(chan string, 1)}
		code := Main(t.Context(), Env{In: strings.NewReader(""), Out: &out, Err: f}, append([]string{"--session", filepath.Join(p.dir, as+".json")}, args...))
		if page := <-f.last; code != want {
			t.Errorf("cis %v: exit %d, out %q, err %q, page %s", args, code, out.String(), f.String(), page)
		}
		return out.String() + f.String()
	}
	if got := run("ann", "ann@corp.example", 0, "login", p.url, "--oidc"); !strings.Contains(got, "logged in as ann, org demo") {
		t.Error(got)
	}
	if code, out, errs := p.cis("", "ann", "account", "show"); code != 0 || !strings.Contains(out, "demo:reader") || !strings.Contains(out, "none") {
		t.Errorf("%d %s %s", code, out, errs)
	}
	if got := run("eve", "admin@corp.example", 3, "login", p.url, "--oidc"); !strings.Contains(got, "refused") {
		t.Error(got)
	}
	if code, _, errs := p.cis("pass-of-admin", "admin", "login", p.url, "-u", "admin", "--org", "demo", "--password-stdin"); code != 0 {
		t.Fatal(errs)
	}
	if got := run("admin", "boss@corp.example", 0, "account", "link"); !strings.Contains(got, "linked") {
		t.Error(got)
	}
	if code, out, errs := p.cis("", "admin", "account", "identities"); code != 0 || !strings.Contains(out, "boss@corp.example") || !strings.Contains(out, "corp ") {
		t.Errorf("%d %s %s", code, out, errs)
	}
	if got := run("boss", "boss@corp.example", 0, "login", p.url, "--oidc", "--org", "demo"); !strings.Contains(got, "logged in as admin, org demo") {
		t.Error(got)
	}
}

func TestExpiry(t *testing.T) {
	for text, days := range map[string]float64{"90d": 90, "1d": 1, "12h": 0.5, "": 0, "never": 0} {
		at, err := expiry(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if got := time.Until(at).Hours() / 24; days > 0 && (got < days-0.05 || got > days+0.05) || days == 0 && !at.IsZero() {
			t.Errorf("%q is in %v days", text, got)
		}
	}
	for _, text := range []string{"soon", "-1d", "0d", "d", "-3h", "99999999d", "2027-13-01"} {
		if at, err := expiry(text); err == nil {
			t.Errorf("%q is %v", text, at)
		}
	}
	if at, err := expiry("2027-01-31"); err != nil || at.Day() != 31 {
		t.Errorf("%v, %v", at, err)
	}
}
