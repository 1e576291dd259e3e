// Package sharing is how the guest asks the VM service for a container's files.
//
// Kata's remote hypervisor knows of no directory that host and guest share: its
// shim copies each volume's files into the guest once. Here host and guest are
// on one machine, so that the agent can do better. When it is to create a
// container, it opens a stream to Port of the host and sends a Request; the
// service looks the container up in containerd's own record (its bundle), puts
// its root file system and the sources of its mounts into the directory that
// the guest has by virtiofs, and answers where they are. What changes on either
// side is then seen on the other.
//
// A guest is not trusted: it can name containers of its own sandbox, and gets
// nothing but what their records say. A request and a response are one JSON
// value each; then the stream ends.
package sharing

import (
	"encoding/json"
	"fmt"
	"io"
)

// Port is the host's vsock port of the service.
const Port = 1025

// Tag is the virtiofs tag of the shared directory.
const Tag = "cumulet"

// MaxMessage bounds a message's bytes.
const MaxMessage = 1 << 20

// Request asks for a container's files, or gives them back.
type Request struct {
	Container string `json:"container"` // its id
	Release   bool   `json:"release,omitempty"`
}

// Response says where the files are, relative to the shared directory.
type Response struct {
	Error string `json:"error,omitempty"`
	Root  string `json:"root,omitempty"` // the root file system
	// Mounts are the sources of bind mounts, by their destination. Sockets and
	// devices of the host are not among them: they have no meaning in a guest.
	Mounts map[string]string `json:"mounts,omitempty"`
}

// Call sends a request and reads the response.
func Call(rw io.ReadWriter, req Request) (Response, error) {
	if err := json.NewEncoder(rw).Encode(req); err != nil {
		return Response{}, fmt.Errorf("ask for the files of container %s: %w", req.Container, err)
	}
	var resp Response
	if err := Decode(rw, &resp); err != nil {
		return Response{}, fmt.Errorf("ask for the files of container %s: %w", req.Container, err)
	}
	if resp.Error != "" {
		return Response{}, fmt.Errorf("the VM service on container %s: %s", req.Container, resp.Error)
	}
	return resp, nil
}

// Decode reads a message.
func Decode(r io.Reader, v any) error {
	d := json.NewDecoder(io.LimitReader(r, MaxMessage))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
