package cri

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"cumulet.io/cis"
)

// A probe is sent by the machine, so it must not reach for a tenant what that tenant's instance cannot: a service of the
// machine behind a name that leads there, or a redirect to it.
func TestProbesReachNoMachine(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "a secret of the machine", http.StatusTeapot)
	}))
	defer service.Close()
	_, text, err := net.SplitHostPort(service.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	c, port := &cis.Container{Name: "c"}, intstr.FromInt(number)
	e := &Engine{}
	for name, p := range map[string]*corev1.Probe{
		"HTTP": {ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "localhost", Port: port}}},
		"TCP":  {ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "localhost", Port: port}}},
	} {
		out, err := e.runProbe(t.Context(), p, "id", "192.0.2.7", c)
		if !errors.Is(err, errOutOfReach) || strings.Contains(out, "secret") {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	// Without an address of its own, an empty host is the machine's loopback.
	for name, p := range map[string]*corev1.Probe{
		"HTTP": {ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: port}}},
		"TCP":  {ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: port}}},
		"gRPC": {ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(number)}}}, //nolint:gosec // a port
	} {
		if _, err := e.runProbe(t.Context(), p, "id", "", c); err == nil || !strings.Contains(err.Error(), errOutOfReach.Error()) {
			t.Errorf("%s without an address: %v", name, err)
		}
	}
	// Its own address is reached, whatever network that is in.
	if err := dialOnce(t.Context(), "localhost", number, "127.0.0.1"); err != nil {
		t.Error(err)
	}
	hook := &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Host: "localhost", Port: port}}
	if err := e.runHook(t.Context(), hook, "id", "192.0.2.7", c); !errors.Is(err, errOutOfReach) {
		t.Errorf("hook: %v", err)
	}
}

// What is on the instances' network is another tenant's, what is not is the world's.
func TestProbesReachNoNeighbour(t *testing.T) {
	here, err := localNetworks()
	if err != nil {
		t.Fatal(err)
	}
	var bridge netip.Prefix
	for _, n := range here {
		if !n.Addr().IsLoopback() && n.Addr().Is4() && n.Bits() < 30 {
			bridge = n
		}
	}
	if !bridge.IsValid() {
		t.Skip("this machine has no network but its loopback")
	}
	own := bridge.Masked().Addr().Next()
	if own == bridge.Addr() {
		own = own.Next()
	}
	neighbour := own.Next()
	if neighbour == bridge.Addr() {
		neighbour = neighbour.Next()
	}
	try := probeDialer(own.String()).Control
	for to, reached := range map[string]bool{
		own.String(): true, "192.0.2.1": true, "::ffff:192.0.2.1": true,
		neighbour.String(): false, bridge.Addr().String(): false, "::ffff:" + bridge.Addr().String(): false,
		"127.0.0.1": false, "::1": false, "0.0.0.0": false, "169.254.169.254": false, "fe80::1%eth0": false, "224.0.0.1": false,
	} {
		err := try("tcp", net.JoinHostPort(to, "80"), nil)
		if reached != (err == nil) || !reached && !errors.Is(err, errOutOfReach) {
			t.Errorf("from %s to %s: %v", own, to, err)
		}
	}
}
