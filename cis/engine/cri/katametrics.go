package cri

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"

	"cumulet.io/cis"
)

// shimMonitor is where each of Kata's shims serves its metrics, as its own monitor expects it (kata-containers,
// pkg/containerd-shim-v2, shim_management.go).
const shimMonitor = "/run/vc/sbs/%s/shim-monitor.sock"

// Bounds of asking the shims: all of them together, how many at a time, and what is taken of one.
const (
	metricsTimeout = 3 * time.Second
	metricsAtOnce  = 32
	maxSeries      = 500
)

// KataMetrics gathers the metrics of the live instances of class kata from their shims: of the shim, the hypervisor, the
// guest. Each is labelled with its instance and org. A shim that does not answer is left out, and keeps no other waiting.
type KataMetrics struct {
	engine *Engine
	socket string // of a shim, with its sandbox's id for %s
}

// KataMetrics gives the engine's.
func (e *Engine) KataMetrics() KataMetrics { return KataMetrics{e, shimMonitor} }

// Gather implements prometheus.Gatherer.
func (k KataMetrics) Gather() ([]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(context.Background(), metricsTimeout)
	defer cancel()
	var (
		mu     sync.Mutex
		all    = map[string]*dto.MetricFamily{}
		asking sync.WaitGroup
		places = make(chan struct{}, metricsAtOnce)
	)
	for _, id := range k.engine.ids() {
		a, err := k.engine.actor(id)
		if err != nil {
			continue
		}
		v := a.view.Load()
		if v == nil || v.class != cis.Kata || v.sandboxID == "" {
			continue
		}
		asking.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			families, err := k.ask(ctx, v.sandboxID)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			add(all, families, id, v.org)
		})
	}
	asking.Wait()
	out := make([]*dto.MetricFamily, 0, len(all))
	for _, f := range all {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

var _ prometheus.Gatherer = KataMetrics{}

// add puts one sandbox's families to those of all.
func add(all, families map[string]*dto.MetricFamily, instance, org string) {
	left := maxSeries
	for name, f := range families {
		if !strings.HasPrefix(name, "kata_") {
			continue
		}
		to := all[name]
		if to == nil {
			to = &dto.MetricFamily{Name: f.Name, Help: f.Help, Type: f.Type}
			all[name] = to
		}
		if to.GetType() != f.GetType() {
			continue
		}
		for _, m := range f.Metric {
			if left--; left < 0 {
				return
			}
			m.Label = append(m.Label, &dto.LabelPair{Name: proto.String("instance_id"), Value: proto.String(instance)},
				&dto.LabelPair{Name: proto.String("org"), Value: proto.String(org)})
			slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
			to.Metric = append(to.Metric, m)
		}
	}
}

func (k KataMetrics) ask(ctx context.Context, sandbox string) (map[string]*dto.MetricFamily, error) {
	if sandbox != filepath.Base(sandbox) {
		return nil, fmt.Errorf("sandbox id %q", sandbox)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", fmt.Sprintf(k.socket, sandbox))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://shim/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // only read from
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the shim answers %s", resp.Status)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	return p.TextToMetricFamilies(http.MaxBytesReader(nil, resp.Body, 4<<20))
}
