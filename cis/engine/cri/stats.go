package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"cumulet.io/cis"
)

// Stats implements engine.StatsReader; no ids means all live instances.
func (e *Engine) Stats(ctx context.Context, ids []string) ([]cis.Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	sel := e.own("")
	if len(ids) == 1 {
		sel = e.own(ids[0])
	}
	containers, err := e.rt.ListContainerStats(ctx, &rt.ListContainerStatsRequest{Filter: &rt.ContainerStatsFilter{LabelSelector: sel}})
	if err != nil {
		return nil, fmt.Errorf("read stats: %w", err)
	}
	pods, err := e.rt.ListPodSandboxStats(ctx, &rt.ListPodSandboxStatsRequest{Filter: &rt.PodSandboxStatsFilter{LabelSelector: sel}})
	if err != nil {
		return nil, fmt.Errorf("read stats: %w", err)
	}
	sandboxes, err := e.rt.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{LabelSelector: sel}})
	if err != nil {
		return nil, fmt.Errorf("read stats: %w", err)
	}
	if len(ids) == 0 {
		ids = e.ids()
	}
	now := time.Now().UTC()
	index := make(map[string]*cis.Stats, len(ids))
	out := make([]cis.Stats, 0, len(ids))
	order := make([]*cis.Stats, 0, len(ids))
	for _, id := range ids {
		if a, err := e.actor(id); err == nil && index[id] == nil {
			if v := a.view.Load(); v != nil && v.sandboxID != "" {
				s := &cis.Stats{Instance: id, Time: now, Containers: []cis.ContainerStats{}}
				index[id] = s
				order = append(order, s)
			}
		}
	}
	for _, s := range sandboxes.GetItems() {
		if st := index[s.Labels[labelInstance]]; st != nil {
			st.StartTime = time.Unix(0, s.CreatedAt).UTC()
		}
	}
	for _, p := range pods.GetStats() {
		if st := index[p.GetAttributes().GetLabels()[labelInstance]]; st != nil {
			n := p.GetLinux().GetNetwork().GetDefaultInterface()
			st.RxBytes, st.TxBytes = n.GetRxBytes().GetValue(), n.GetTxBytes().GetValue()
		}
	}
	for _, c := range containers.GetStats() {
		st := index[c.GetAttributes().GetLabels()[labelInstance]]
		if st == nil {
			continue
		}
		cs := cis.ContainerStats{Name: c.GetAttributes().GetMetadata().GetName(),
			CPUNanoseconds: c.GetCpu().GetUsageCoreNanoSeconds().GetValue(),
			MemoryBytes:    c.GetMemory().GetWorkingSetBytes().GetValue(),
			DiskBytes:      c.GetWritableLayer().GetUsedBytes().GetValue()}
		if a, err := e.actor(st.Instance); err == nil {
			v := a.view.Load().containers[cs.Name]
			if !v.running || v.id != c.GetAttributes().GetId() {
				continue
			}
			cs.StartTime = v.startedAt
		}
		st.Containers = append(st.Containers, cs)
	}
	for _, s := range order {
		out = append(out, *s)
	}
	return out, nil
}

// ids are those of the live instances.
func (e *Engine) ids() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := slices.Collect(maps.Keys(e.actors))
	slices.Sort(ids)
	return ids
}
