package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// EventSource is the log store, as the ledger needs it. An implementation is safe for one reader.
type EventSource interface {
	// SearchMeter gives up to limit meter event lines, each as it was written on the node without its newline, whose
	// event time is not before from, in a total and stable order, behind the cursor after (nil: from the beginning).
	// next is the cursor behind the last line, and empty when there was nothing more. Everything acknowledged to the
	// shipper before the first call with a nil cursor is found.
	//
	// Cursor values are JSON scalars; integers come back as int64.
	SearchMeter(ctx context.Context, from time.Time, after []any, limit int) (lines [][]byte, next []any, err error)
}

// IngestorOptions configures an Ingestor. The zero value is good.
type IngestorOptions struct {
	// Poll is how long to wait between passes; 0 means 10 s.
	Poll time.Duration
	// Recent is how far behind the newest event a pass begins, so that events shipped late are found; 0 means 30 s. What
	// is read again costs, with each pass.
	Recent time.Duration
	// OverlapEvery and Overlap make a pass now and then that looks further back, for a node that ships behind the others;
	// 0 means every minute, 1 h.
	OverlapEvery, Overlap time.Duration
	// DeepEvery and DeepOverlap make one that looks far back, for a node that could not ship for long; 0 means every 6
	// hours, 40 days. The first pass of a process is such a one.
	DeepEvery, DeepOverlap time.Duration
	// Batch is how many events one transaction takes; 0 means 1000.
	Batch int
	// Logger gets what was quarantined and what failed; nil means slog.Default.
	Logger *slog.Logger
}

// Ingestor reads the log store into the ledger.
type Ingestor struct {
	l    *Ledger
	src  EventSource
	opts IngestorOptions
	// wide and deep are when the last passes began that looked further back, and far back.
	wide, deep time.Time
	// taken are the lines, by SHA-256, that the last pass found or put into the ledger: the next one, which reads most of
	// them again, need not look for them there.
	taken map[[sha256.Size]byte]bool
}

// maxTaken bounds what is remembered of a pass; what is beyond is looked for in the ledger.
const maxTaken = 1 << 17

// NewIngestor makes an Ingestor; Run starts it.
func NewIngestor(l *Ledger, src EventSource, opts IngestorOptions) *Ingestor {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&opts.Poll, 10*time.Second)
	set(&opts.Recent, 30*time.Second)
	set(&opts.OverlapEvery, time.Minute)
	set(&opts.Overlap, time.Hour)
	set(&opts.DeepEvery, 6*time.Hour)
	set(&opts.DeepOverlap, 40*24*time.Hour)
	if opts.Batch <= 0 {
		opts.Batch = 1000
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	return &Ingestor{l: l, src: src, opts: opts}
}

// Run makes passes until ctx ends and then returns nil. A pass that fails is tried again, from its checkpoint.
func (g *Ingestor) Run(ctx context.Context) error {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		n, err := g.Pass(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			g.opts.Logger.Error("meter events not read; tried again", "error", err.Error())
		case n.Quarantined > 0:
			g.opts.Logger.Warn("meter events quarantined", "count", n.Quarantined)
		}
		wait.Reset(g.opts.Poll)
	}
}

// checkpoint is where a pass stands.
type checkpoint struct {
	// Began is when the pass began, nanoseconds since 1970; 0 between passes.
	Began int64 `json:"began,omitempty"`
	// From is where it reads from, nanoseconds since 1970; After is the cursor.
	From  int64 `json:"from,omitempty"`
	After []any `json:"after,omitempty"`
}

// Pass reads once from some time behind the newest event to the end, or goes on with a pass that a crash cut short.
func (g *Ingestor) Pass(ctx context.Context) (Ingested, error) {
	var sum Ingested
	c, newest, err := g.l.checkpoint(ctx)
	if err != nil {
		return sum, fmt.Errorf("ingest pass: %w", err)
	}
	now := g.l.now()
	deep := g.deep.IsZero() || now.Sub(g.deep) >= g.opts.DeepEvery
	wide := deep || c.Began == 0 && now.Sub(g.wide) >= g.opts.OverlapEvery
	if c.Began == 0 || deep {
		c = checkpoint{Began: now.UnixNano()}
		if newest != 0 {
			back := g.opts.Recent
			switch {
			case deep:
				back = g.opts.DeepOverlap
			case wide:
				back = g.opts.Overlap
			}
			// A node whose clock is ahead must not move the reader past the others' events.
			c.From = min(newest, now.UnixNano()) - back.Nanoseconds()
		}
	}
	taken := map[[sha256.Size]byte]bool{}
	for {
		lines, next, err := g.src.SearchMeter(ctx, time.Unix(0, c.From).UTC(), c.After, g.opts.Batch)
		if err != nil {
			return sum, fmt.Errorf("ingest pass: %w", err)
		}
		done := len(next) == 0 || len(lines) == 0
		through := c.Began
		if done {
			c = checkpoint{}
		} else {
			c.After = next
		}
		lines, known := g.untaken(lines, taken)
		n, err := g.l.ingest(ctx, lines, func(ctx context.Context, t *tx) error {
			text, err := json.Marshal(c)
			if err != nil {
				return err
			}
			if !done {
				return t.exec(ctx, `UPDATE billing_state SET checkpoint = ? WHERE id = 1`, string(text))
			}
			return t.exec(ctx, `UPDATE billing_state SET checkpoint = ?, complete_through = ? WHERE id = 1`, string(text), through)
		})
		if err != nil {
			return sum, err
		}
		sum.New, sum.Known, sum.Quarantined = sum.New+n.New, sum.Known+n.Known+known, sum.Quarantined+n.Quarantined
		if done {
			g.taken = taken
			if deep {
				g.deep = now
			}
			if wide {
				g.wide = now
			}
			return sum, nil
		}
	}
}

// untaken leaves out the lines that the last pass has taken, tells how many those are, and notes all in taken.
func (g *Ingestor) untaken(lines [][]byte, taken map[[sha256.Size]byte]bool) (left [][]byte, known int) {
	for _, line := range lines {
		sum := sha256.Sum256(line)
		if len(taken) < maxTaken {
			taken[sum] = true
		}
		if g.taken[sum] {
			known++
			continue
		}
		left = append(left, line)
	}
	return left, known
}

// checkpoint reads the stored one and the newest event's time.
func (l *Ledger) checkpoint(ctx context.Context) (checkpoint, int64, error) {
	var c checkpoint
	var text string
	var newest int64
	if err := l.db.QueryRowContext(ctx, l.db.Q(`SELECT checkpoint, newest_event FROM billing_state WHERE id = 1`)).Scan(&text, &newest); err != nil {
		return c, 0, err
	}
	if text == "" {
		return c, newest, nil
	}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.UseNumber()
	if err := d.Decode(&c); err != nil {
		return c, 0, fmt.Errorf("read checkpoint: %w", err)
	}
	for i, v := range c.After {
		n, ok := v.(json.Number)
		if !ok {
			continue
		}
		whole, err := n.Int64()
		if err != nil {
			return c, 0, errors.Join(errors.New("read checkpoint: a cursor holds a number that is not whole"), err)
		}
		c.After[i] = whole
	}
	return c, newest, nil
}
