package oci

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/sirupsen/logrus"
)

// bridgeOnce guards logrus's standard logger, which is one in a process.
var bridgeOnce sync.Once //nolint:gochecknoglobals // guards another package's global

// BridgeLogs sends what libraries write to logrus's standard logger (the distribution core, containerd's client) to
// logger instead: warnings and errors alone, and what is merely a client's fault at debug level. The first call in a
// process counts. A server calls it once at start.
func BridgeLogs(logger *slog.Logger) {
	bridgeOnce.Do(func() {
		std := logrus.StandardLogger()
		std.SetOutput(io.Discard)
		std.SetLevel(logrus.WarnLevel)
		std.ReplaceHooks(logrus.LevelHooks{})
		std.AddHook(&logHook{logger})
	})
}

type logHook struct{ logger *slog.Logger }

// Levels implements logrus.Hook.
func (h *logHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// kept are the core's fields worth keeping. Its URIs are not: they carry upload state.
func kept(field string) bool {
	return slices.Contains([]string{"vars.name", "vars.reference", "vars.digest", "err.code", "err.message", "err.detail",
		"error", "http.request.method", "http.request.remoteaddr", "auth.user.name", "module"}, field)
}

// Fire implements logrus.Hook.
func (h *logHook) Fire(e *logrus.Entry) error {
	level := slog.LevelWarn
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelError
	}
	if clientFault(e) || strings.HasPrefix(e.Message, "Image index completeness validation") { // our choice, see configuration
		level = slog.LevelDebug
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	if !h.logger.Enabled(ctx, level) {
		return nil
	}
	fields := make([]string, 0, len(e.Data))
	for k := range e.Data {
		if kept(k) {
			fields = append(fields, k)
		}
	}
	slices.Sort(fields)
	record := slog.NewRecord(e.Time, level, e.Message, 0)
	for _, k := range fields {
		record.AddAttrs(slog.String(k, fmt.Sprint(e.Data[k])))
	}
	return h.logger.Handler().Handle(ctx, record)
}

// clientFault tells of entries that are about a request that was answered 4xx, or whose client has gone: what the core
// writes about that, and about a body of another digest, it writes as its own errors.
func clientFault(e *logrus.Entry) bool {
	if strings.HasPrefix(e.Message, "client disconnected during ") || e.Data["err.detail"] == "client disconnected" ||
		e.Message == "canonical digest does match provided digest" {
		return true
	}
	if _, ok := e.Data["http.request.method"]; !ok {
		return false
	}
	if code, ok := e.Data["err.code"].(errcode.ErrorCode); ok {
		return code.Descriptor().HTTPStatusCode < 500
	}
	// Without a code it is a refusal of the token, or of a body that the client broke off.
	return e.Level == logrus.WarnLevel
}
