package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// OpenID is a running OpenID provider.
type OpenID struct {
	// Issuer is its URL.
	Issuer string
	t      testing.TB
	file   string
}

// OpenIDProvider starts an OpenID provider with one client, id "cumulet" and secret "secret", that may redirect to a
// URL. users are its people, by email address, which is their user name, too: their subject, "!" before it when the
// address is not verified, and behind it their groups. Their password is "secret".
func OpenIDProvider(t testing.TB, redirect string, users map[string]string) *OpenID {
	t.Helper()
	program := Tool(t, "oidcprovider")
	o := &OpenID{t: t, file: filepath.Join(t.TempDir(), "users.json")}
	o.SetGroups(users)
	file := o.file
	cmd := exec.Command(program, "-listen", fmt.Sprintf("127.0.0.1:%d", FreePort(t)), "-redirect", redirect, "-users", file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // killed by us
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "serving ") {
		t.Fatalf("the OpenID provider said %q, %v", line, err)
	}
	o.Issuer = strings.TrimSpace(strings.TrimPrefix(line, "serving "))
	return o
}

// SetGroups changes the groups of its people; what else users say is of the start.
func (o *OpenID) SetGroups(users map[string]string) {
	o.t.Helper()
	list := map[string]any{}
	for email, text := range users {
		words := strings.Fields(text)
		id, unverified := strings.CutPrefix(words[0], "!")
		one := map[string]any{"ID": id, "Username": email, "Password": "secret", "Email": email, "EmailVerified": !unverified, "PreferredLanguage": "en"}
		if len(words) > 1 {
			one["Groups"] = words[1:]
		}
		list[id] = one
	}
	text, err := json.Marshal(list)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := os.WriteFile(o.file, text, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// Browser is a person's, with cookies of its own and, behind a proxy that is believed, an address of its own.
type Browser struct {
	http.Client
	t       testing.TB
	address string
}

// NewBrowser gives a fresh one.
func NewBrowser(t testing.TB) *Browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &Browser{Client: http.Client{Jar: jar, Transport: transport, Timeout: time.Minute}, t: t,
		address: fmt.Sprintf("10.%d.%d.%d", rand.IntN(256), rand.IntN(256), rand.IntN(256))}
}

// Send makes a request, with a form unless that is nil, and gives the answer with its body.
func (b *Browser) Send(method, target string, form url.Values, header ...string) (*http.Response, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, target, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("X-Forwarded-For", b.address)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(body)
}

// Input gives the value of a form's input in a page.
func Input(t testing.TB, page, name string) string {
	t.Helper()
	m := regexp.MustCompile(`name="` + name + `" value="([^"]*)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no %s in the page:\n%s", name, page)
	}
	return m[1]
}

// Confirm opens the registry's login page and confirms the code with the first provider there, or the one of a name:
// the answer is the provider's login page.
func (b *Browser) Confirm(uri string, provider ...string) (*http.Response, string) {
	b.t.Helper()
	_, form := b.Send(http.MethodGet, uri, nil)
	action, _, _ := strings.Cut(uri, "?")
	if len(provider) == 0 {
		provider = []string{Input(b.t, form, "provider")}
	}
	return b.Send(http.MethodPost, action, url.Values{"token": {Input(b.t, form, "token")}, "code": {Input(b.t, form, "code")}, "provider": provider}, "Sec-Fetch-Site", "same-origin")
}

// Credentials sends user name and password to the provider's login page.
func (b *Browser) Credentials(at *http.Response, page, user string) (*http.Response, string) {
	b.t.Helper()
	action := *at.Request.URL
	action.Path, action.RawQuery = "/login/username", ""
	return b.Send(http.MethodPost, action.String(), url.Values{"id": {Input(b.t, page, "id")}, "username": {user}, "password": {"secret"}})
}

// LogIn goes all the way from the registry's login page, as a user of the provider (see Confirm), and gives the last page.
func (b *Browser) LogIn(uri, user string, provider ...string) (status int, page string) {
	b.t.Helper()
	at, form := b.Confirm(uri, provider...)
	resp, last := b.Credentials(at, form, user)
	return resp.StatusCode, last
}
