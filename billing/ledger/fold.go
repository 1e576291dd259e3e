package ledger

import (
	"time"

	"cumulet.io/billing"
)

// Seconds are billed seconds of the two phases.
type Seconds struct {
	Startup int64 `json:"startup"`
	Running int64 `json:"running"`
}

// Sum is both.
func (s Seconds) Sum() int64 { return s.Startup + s.Running }

// fold is where an instance's life stands after an event.
//
// How a life becomes billed seconds: put its counted milliseconds on a line, from 0 to startup+running, in the order
// in which they were counted. A billed second begins at every whole second of that line, 0, 1000, 2000 … below its end:
// that is ceil(total/1000) of them, once a life. A second belongs to the phase and to the hour in which it begins. So
// startup + running = ceil(total), every slice is a difference of the cumulative ceiling, slices of any size add up
// exactly, and a second once billed never moves.
//
// Between two events the counters are taken to run from the first on, and startup before running; the meter appends an
// event at each change of phase, so that is how it was. When the wall clock was set back between them, what does not
// fit is counted at the second one.
type fold struct {
	at      time.Time
	startup int64
	running int64
	begun   bool
}

// add goes on to the next event in order and gives f the seconds of each hour that it adds, none of them empty.
func (s *fold) add(ev *billing.Event, f func(hour int64, add Seconds)) {
	from := s.startup + s.running
	to := ev.StartupMillis + ev.RunningMillis
	end := ev.At
	begin := s.at
	if !s.begun {
		// What was counted before the first event that is known was counted up to it.
		begin = end.Add(-time.Duration(to) * time.Millisecond)
	}
	if end.Before(begin) {
		end = begin
	}
	turn := from + ev.StartupMillis - s.startup // startup before it, running after
	for done := from; done < to; {
		hour := begin.Add(time.Duration(done-from) * time.Millisecond)
		if hour.After(end) {
			hour = end
		}
		hour = hour.Truncate(time.Hour)
		upto := to
		if next := hour.Add(time.Hour); !next.After(end) {
			// The last millisecond that begins before next belongs here.
			span := next.Sub(begin)
			upto = min(to, from+int64((span+time.Millisecond-1)/time.Millisecond))
		}
		middle := min(max(turn, done), upto)
		add := Seconds{Startup: ceil(middle) - ceil(done), Running: ceil(upto) - ceil(middle)}
		if add.Sum() > 0 {
			f(hour.Unix(), add)
		}
		done = upto
	}
	s.at, s.startup, s.running, s.begun = end, ev.StartupMillis, ev.RunningMillis, true
}

// ceil is the number of whole seconds that begin before millisecond n.
func ceil(n int64) int64 { return (n + 999) / 1000 }
