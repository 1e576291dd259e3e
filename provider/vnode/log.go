package vnode

import (
	"fmt"
	"log/slog"

	"github.com/virtual-kubelet/virtual-kubelet/log"
)

// libraryLogger passes virtual-kubelet's log on. What it takes for information is detail here.
type libraryLogger struct{ l *slog.Logger }

var _ log.Logger = libraryLogger{}

func (l libraryLogger) Debug(a ...any)            { l.l.Debug(fmt.Sprint(a...)) }
func (l libraryLogger) Debugf(f string, a ...any) { l.l.Debug(fmt.Sprintf(f, a...)) }
func (l libraryLogger) Info(a ...any)             { l.l.Debug(fmt.Sprint(a...)) }
func (l libraryLogger) Infof(f string, a ...any)  { l.l.Debug(fmt.Sprintf(f, a...)) }
func (l libraryLogger) Warn(a ...any)             { l.l.Warn(fmt.Sprint(a...)) }
func (l libraryLogger) Warnf(f string, a ...any)  { l.l.Warn(fmt.Sprintf(f, a...)) }
func (l libraryLogger) Error(a ...any)            { l.l.Error(fmt.Sprint(a...)) }
func (l libraryLogger) Errorf(f string, a ...any) { l.l.Error(fmt.Sprintf(f, a...)) }
func (l libraryLogger) Fatal(a ...any)            { l.l.Error(fmt.Sprint(a...)) }
func (l libraryLogger) Fatalf(f string, a ...any) { l.l.Error(fmt.Sprintf(f, a...)) }

func (l libraryLogger) WithField(k string, v any) log.Logger { return libraryLogger{l.l.With(k, v)} }
func (l libraryLogger) WithError(err error) log.Logger       { return libraryLogger{l.l.With("error", err)} }
func (l libraryLogger) WithFields(f log.Fields) log.Logger {
	args := make([]any, 0, 2*len(f))
	for k, v := range f {
		args = append(args, k, v)
	}
	return libraryLogger{l.l.With(args...)}
}
