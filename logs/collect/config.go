package collect

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Options of New.
type Options struct {
	// Binary is Filebeat's path, or a name to look up in PATH. Version 7.17.
	Binary string
	// Dir holds Filebeat's configuration, registry and socket; its path is at most 80 bytes. It must outlive restarts:
	// a lost registry only means that everything that is still there is sent again and found again.
	Dir string
	// LogRoot has the lines: LogRoot/ORG/INSTANCE/CONTAINER/ATTEMPT.log in CRI format.
	LogRoot string
	// MeterDir has meter events: *.ndjson, one event a line with its time in "time".
	MeterDir string
	// Store is the URL of the Elasticsearch API.
	Store string
	// User and Password may write there. The password begins with a letter and consists of letters, digits, - and _.
	User, Password string
	// CAFile is a PEM file to trust for Store, "" for the system's.
	CAFile string
	// Scan is how often new files are looked for; 0 means 2 s.
	Scan time.Duration

	idle time.Duration // idleTimeout, but for tests
}

// idleTimeout is how long Filebeat keeps a file open that nothing is written to; one that is removed it closes at once.
//
// It must be longer than programs are silent. Filebeat 7.17 looks for what has grown, once each Scan, and starts a reader for it,
// unless one is running; a reader that closes after the timeout does not look a last time. What is written in the second
// before is seen by neither, until more is written: of programs that say something, sleep for just the timeout and say
// their last word, every other one's last word would not arrive. [Reaper] finds those that are left.
const idleTimeout = 24 * time.Hour

// cleanTimeout bounds Filebeat's registry: the place in a file is forgotten so long after its last line has arrived. Of a
// file that is read again after that, the store has every line already, by its id.
const cleanTimeout = 7 * 24 * time.Hour

// passwordEnv carries the password to Filebeat, so that it is in no file and no process list.
const passwordEnv = "CUMULET_LOG_STORE_PASSWORD"

var passwordRule = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{7,127}$`)

func (o *Options) check() error {
	if o.idle <= 0 {
		o.idle = idleTimeout
	}
	if o.Scan <= 0 {
		o.Scan = 2 * time.Second
	}
	for name, dir := range map[string]string{"Dir": o.Dir, "LogRoot": o.LogRoot, "MeterDir": o.MeterDir} {
		// Filebeat takes these as patterns and expands variables in them.
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.ContainsAny(dir, `*?[]{}$%\`+"\n") || dir == "/" {
			return fmt.Errorf("%s must be an absolute, clean path without wildcards, not %q", name, dir)
		}
	}
	u, err := url.Parse(o.Store)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil:
		return errors.New("Store must be an http or https URL without credentials")
	case o.Binary == "":
		return errors.New("Binary is required")
	case len(o.Dir) > 80:
		return errors.New("Dir is longer than 80 bytes, too long for a socket")
	case o.User == "" || !passwordRule.MatchString(o.Password):
		return errors.New("User and Password are required; a password is a letter and 7 to 127 letters, digits, - or _")
	case strings.ContainsAny(o.User+o.CAFile, "$\n"):
		return errors.New("User and CAFile must not have a $")
	}
	return nil
}

type object = map[string]any

// InputLogs and InputMeter are the ids of Filebeat's inputs, which its registry keys begin with.
const (
	InputLogs  = "cumulet-logs"
	InputMeter = "cumulet-meter"
)

// config makes filebeat.yml. Every setting that keeps a line from being lost is said here, default or not.
func (o *Options) config() ([]byte, error) {
	input := func(id, glob string, processors ...any) object {
		return object{
			"type": "filestream", "id": id, "paths": []string{glob}, "encoding": "plain",
			// Only \n ends a line: a \r before it is the container's.
			"line_terminator":                      "line_feed",
			"prospector.scanner.check_interval":    o.Scan.String(),
			"prospector.scanner.symlinks":          false,
			"prospector.scanner.fingerprint":       object{"enabled": false},
			"file_identity.path":                   nil,
			"close.on_state_change.inactive":       o.idle.String(),
			"close.on_state_change.removed":        true, // only what has arrived is removed
			"close.on_state_change.renamed":        false,
			"close.on_state_change.check_interval": min(o.idle, 10*time.Second).String(),
			"clean_removed":                        false,
			"clean_inactive":                       0,
			// When the place in a file that is idle is forgotten; the default of 30 minutes would send it all again.
			"clean_timeout":                   cleanTimeout.String(),
			"ignore_older":                    0,
			"backoff.init":                    "100ms",
			"backoff.max":                     "1s",
			"publisher_pipeline.disable_host": true,
			"processors":                      processors,
		}
	}
	drop := func(fields ...string) object {
		return object{"drop_fields": object{"fields": fields, "ignore_missing": true}}
	}
	when := func(field string) object {
		return object{"timestamp": object{"field": field, "layouts": []string{"2006-01-02T15:04:05Z07:00"}, "ignore_missing": true}}
	}
	hash := func(target string, fields ...string) object {
		return object{"fingerprint": object{"fields": fields, "target_field": target, "method": "sha256", "encoding": "hex"}}
	}
	cfg := object{
		"filebeat.inputs": []any{
			// Who wrote a line is in the path alone; the record's frame is the runtime's; the rest is the line as it was.
			input(InputLogs, o.LogRoot+"/*/*/*/*.log",
				object{"dissect": object{"field": "log.file.path", "target_prefix": "",
					"tokenizer": o.LogRoot + "/%{org}/%{instance}/%{container}/%{attempt|integer}.log"}},
				object{"dissect": object{"field": "message", "target_prefix": "", "overwrite_keys": true,
					"tokenizer": "%{cri.time} %{cri.stream} %{cri.tag} %{message}"}},
				when("cri.time"),
				hash("@metadata._id", "log.file.path", "log.offset")),
			// A meter event is its line, byte for byte. Its identity is its content: a line sent twice is there once, and two
			// events of one id are both there, for the ledger to see.
			input(InputMeter, o.MeterDir+"/*.ndjson",
				object{"decode_json_fields": object{"fields": []string{"message"}, "target": "meter", "max_depth": 1}},
				when("meter.time"),
				hash("@metadata._id", "message"),
				hash("event.hash", "message"),
				drop("meter")),
		},
		// Here and not in the inputs: Filebeat adds some of these after the inputs' own processors.
		"processors":              []any{drop("agent", "ecs", "input", "host", "tags")},
		"filebeat.registry.flush": "1s",
		"filebeat.registry.path":  "registry",
		"path":                    object{"home": o.Dir, "config": o.Dir, "data": o.Dir + "/data", "logs": o.Dir + "/logs"},
		"queue.mem":               object{"events": 8192, "flush.min_events": 1024, "flush.timeout": "500ms"},
		"output.elasticsearch": object{
			"hosts": []string{o.Store}, "username": o.User, "password": "${" + passwordEnv + "}",
			"index":             "logs-%{+yyyy.MM.dd}",
			"indices":           []any{object{"index": "meter-%{+yyyy.MM}", "when.has_fields": []string{"event.hash"}}},
			"bulk_max_size":     1024,
			"worker":            1,
			"compression_level": 1,
			"timeout":           "60s",
			"backoff":           object{"init": "1s", "max": "10s"},
			// The default drops a document that is refused.
			"non_indexable_policy.dead_letter_index": object{"index": "dead-letters"},
		},
		"setup":              object{"template.enabled": false, "ilm.enabled": false, "dashboards.enabled": false},
		"monitoring.enabled": false,
		"logging":            object{"level": "warning", "to_stderr": true, "to_files": false, "json": true, "metrics.enabled": false},
		"http":               object{"enabled": true, "host": "unix://" + o.socket()},
	}
	if o.CAFile != "" {
		cfg["output.elasticsearch"].(object)["ssl.certificate_authorities"] = []string{o.CAFile} //nolint:forcetypeassert // made above
	}
	b, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("filebeat configuration: %w", err)
	}
	return append([]byte("# Written by the collector at each start.\n"), b...), nil
}

func (o *Options) socket() string { return o.Dir + "/filebeat.sock" }
