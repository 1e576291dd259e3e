package registry

import "context"

// Actor is who does something, for the audit log.
type Actor struct {
	// Name is the account; empty for the anonymous.
	Name string
	// Address is the client's network address without port.
	Address string
}

// ActorPlatform is the name under which the platform's own changes are kept. No account can have it.
const ActorPlatform = "(platform)"

type actorKey struct{}

// WithActor returns a context in which a does what is done.
func WithActor(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// ActorFrom gives the actor of a context: the platform when there is none.
func ActorFrom(ctx context.Context) Actor {
	if a, ok := ctx.Value(actorKey{}).(Actor); ok {
		return a
	}
	return Actor{Name: ActorPlatform}
}
