package elastic

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"cumulet.io/logs"
)

// SearchMeter gives up to limit lines of meter event files, each as it was written on the node without its newline,
// whose event time (to the millisecond) is not before from, ordered by (@timestamp, event.hash) behind the place after
// (nil: from the beginning). next is the place behind the last line, empty when nothing more was there. Values of a
// place are JSON scalars, integers int64; it may be stored as JSON. The first call, with no place, finds everything
// that was acknowledged to the shipper before it.
//
// Lines may be acknowledged later with earlier times (a node that was cut off): the caller chooses from with overlap
// and knows an event that it has seen by its id. Every line is there once, by the hash of its content, so two events
// of one id with different content both come.
func (s *Store) SearchMeter(ctx context.Context, from time.Time, after []any, limit int) (lines [][]byte, next []any, err error) {
	const op = "search meter events"
	if limit < 1 || limit > logs.MaxLimit {
		return nil, nil, fmt.Errorf("%s: limit must be 1 to %d, not %d", op, logs.MaxLimit, limit)
	}
	body := object{"size": limit, "track_total_hits": false, "query": object{"bool": object{"filter": []any{
		object{"exists": object{"field": "event.hash"}},
		object{"range": object{"@timestamp": object{"gte": from.UTC().Format("2006-01-02T15:04:05.000Z07:00")}}}}}},
		"sort": []any{object{"@timestamp": object{"order": "asc"}},
			object{"event.hash": object{"order": "asc", "unmapped_type": "keyword"}}}}
	if len(after) > 0 {
		body["search_after"] = after
	} else if err := s.refresh(ctx, op, MeterIndices); err != nil {
		return nil, nil, err
	}
	hits, err := s.search(ctx, op, MeterIndices, body)
	if err != nil {
		return nil, nil, err
	}
	for _, h := range hits {
		var d struct {
			Message *string `json:"message"`
		}
		if err := json.Unmarshal(h.Source, &d); err != nil || d.Message == nil {
			return nil, nil, fmt.Errorf("%s: document %s of %s has no line", op, h.ID, h.Index)
		}
		lines = append(lines, []byte(*d.Message))
	}
	if len(hits) == limit {
		for _, v := range hits[limit-1].Sort {
			if n, ok := v.(json.Number); ok {
				i, err := n.Int64()
				if err != nil {
					return nil, nil, fmt.Errorf("%s: sort value %s: %w", op, n, err)
				}
				v = i
			}
			next = append(next, v)
		}
	}
	return lines, next, nil
}
