// Command oidcprovider is an OpenID provider on loopback for tests: the provider of github.com/zitadel/oidc with its
// example's storage in memory and its login page.
//
//	oidcprovider -listen 127.0.0.1:9998 -client cumulet -secret SECRET -redirect URL -users users.json
//
// The issuer is http:// and the address. It says "serving" on standard output when it listens. The Groups of a user, which
// the example does not have, are read from the file whenever they are asked for.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9998", "address")
	client := flag.String("client", "cumulet", "client id")
	secret := flag.String("secret", "secret", "client secret")
	redirect := flag.String("redirect", "", "redirect URL of the client")
	users := flag.String("users", "", "JSON file of users, as the example's storage has them")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, *listen, *client, *secret, *redirect, *users)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "oidcprovider:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, client, secret, redirect, users string) error {
	issuer := "http://" + listen + "/"
	storage.RegisterClients(storage.WebClient(client, secret, redirect))
	people := storage.NewUserStore(issuer)
	if users != "" {
		var err error
		if people, err = storage.StoreFromFile(users); err != nil {
			return err
		}
	}
	handler := exampleop.SetupServer(issuer, &grouped{storage.NewStorage(people), users}, slog.New(slog.DiscardHandler), false,
		op.WithAllowInsecure())
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	fmt.Println("serving", issuer)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return errors.Join(server.Shutdown(ctx))
	}
}

// grouped adds the claim groups.
type grouped struct {
	*storage.Storage
	file string
}

// SetUserinfoFromToken implements op.OPStorage: what the userinfo endpoint answers.
func (g *grouped) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, tokenID, subject, origin string) error {
	if err := g.Storage.SetUserinfoFromToken(ctx, info, tokenID, subject, origin); err != nil || g.file == "" {
		return err
	}
	text, err := os.ReadFile(g.file)
	if err != nil {
		return err
	}
	users := map[string]struct{ Groups any }{}
	if err := json.Unmarshal(text, &users); err != nil {
		return err
	}
	if groups := users[subject].Groups; groups != nil {
		info.AppendClaims("groups", groups)
	}
	return nil
}
