module cumulet.io/hack/kata

go 1.26.3

require (
	github.com/containerd/ttrpc v1.2.7
	github.com/kata-containers/kata-containers/src/runtime v0.0.0-20250828155603-754f07cff239
	github.com/mdlayher/vsock v1.2.1
	github.com/pierrec/lz4/v4 v4.1.33
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.36.0
	google.golang.org/grpc v1.75.0
	google.golang.org/protobuf v1.36.8
)

require go.uber.org/goleak v1.3.0

require (
	github.com/containerd/log v0.1.0 // indirect
	github.com/cyphar/filepath-securejoin v0.4.1
	github.com/mdlayher/socket v0.4.1 // indirect
	github.com/opencontainers/runtime-spec v1.2.0
	github.com/sirupsen/logrus v1.9.3 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/net v0.41.0 // indirect
	golang.org/x/sync v0.15.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20250707201910-8d1bb00bc6a7 // indirect
)
