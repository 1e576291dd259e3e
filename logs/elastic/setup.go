package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// templates are the mappings that the queries here rely on; logs/embedded has them built in. A field that is not named
// is kept in the document and not indexed, so that no document is refused for its content.
func templates() map[string]object {
	keyword, text := object{"type": "keyword", "ignore_above": 1024}, object{"type": "wildcard"}
	template := func(pattern string, properties object) object {
		return object{"index_patterns": []string{pattern}, "priority": 500, "template": object{
			"settings": object{"index": object{"codec": "best_compression"}},
			"mappings": object{"dynamic": false, "properties": properties}}}
	}
	log := object{"properties": object{"offset": object{"type": "long"},
		"file": object{"properties": object{"path": keyword}}}}
	return map[string]object{
		"cumulet-logs": template(LogIndices, object{"@timestamp": object{"type": "date"}, "org": keyword, "instance": keyword,
			"container": keyword, "attempt": object{"type": "long"}, "message": text, "log": log,
			"cri": object{"properties": object{"time": object{"type": "date_nanos"}, "stream": keyword, "tag": keyword}}}),
		"cumulet-meter": template(MeterIndices, object{"@timestamp": object{"type": "date"}, "message": text, "log": log,
			"event": object{"properties": object{"hash": keyword}}}),
	}
}

// Setup installs the index templates on a real cluster; repeating it changes nothing. The user needs manage_index_templates
// for this call alone. It is not for logs/embedded.
func (s *Store) Setup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	for name, t := range templates() {
		b, err := json.Marshal(t)
		if err != nil {
			return fmt.Errorf("index template %s: %w", name, err)
		}
		resp, err := s.c.Indices.PutIndexTemplate(name, bytes.NewReader(b), s.c.Indices.PutIndexTemplate.WithContext(ctx))
		if err := answer("index template "+name, resp, err, nil); err != nil {
			return err
		}
	}
	return nil
}
