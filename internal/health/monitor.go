package health

import (
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Config is what a Monitor needs.
type Config struct {
	Check  *Check
	Prober Prober // Check.Prober, as a rule
	// Started is when the container started.
	Started time.Time
	// Adopted says that the container was watched before, by a supervisor that is
	// gone: its status goes on from what Timeline has.
	Adopted bool
	// Paused says that the container is: nothing is probed before Resume.
	Paused bool
	// Timeline takes what happens; nil for none. It is the monitor's until Stop.
	Timeline *Timeline
	// Changed is called when a probe has changed the status, and Failed when the
	// failures in a row have become as many as the check allows, in this order.
	// What Failed returns, if not "", is noted in the timeline: what is going to be
	// done. Both may be nil. The monitor waits for them: they start what they
	// decide in a goroutine, and never call the monitor's own methods.
	Changed func(to container.HealthStatus, last Result)
	Failed  func(last Result) (note string)
	// Warn takes what went wrong beside the probes, as a sentence. May be nil.
	Warn func(error)
}

// Monitor probes one running container. Its methods are safe for concurrent use.
//
// It is one goroutine, and a second one while a probe runs; it holds a timer
// only while it waits for the next probe.
type Monitor struct {
	cfg    Config
	events chan request
	done   chan struct{} // closed when the goroutine has ended

	mu    sync.Mutex
	state State // guarded by mu; written by the goroutine alone
}

// request is an event from outside.
type request struct {
	kind  Kind
	entry Entry
	taken chan struct{} // closed when it has been carried out
	last  bool          // the monitor ends with it
}

// Start begins to watch a container that has started.
func Start(cfg Config) *Monitor {
	m := &Monitor{cfg: cfg, events: make(chan request), done: make(chan struct{})}
	if m.cfg.Warn == nil {
		m.cfg.Warn = func(error) {}
	}
	m.remember()
	go m.loop()
	return m
}

// remember takes the former results from the timeline: inspect shows them
// across restarts, as docker's does.
func (m *Monitor) remember() {
	if m.cfg.Timeline == nil {
		return
	}
	h, err := m.cfg.Timeline.Health()
	if err != nil {
		m.cfg.Warn(err)
	}
	if h == nil {
		return
	}
	m.state.Status, m.state.FailingStreak = h.Status, h.FailingStreak
	for _, r := range h.Log {
		m.state.Log = append(m.state.Log, *r)
	}
}

// Health is what inspect shows now.
func (m *Monitor) Health() *container.Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.Health()
}

// Pause ends the probing until Resume. When it returns, no probe runs.
func (m *Monitor) Pause() {
	m.send(request{kind: Hold, entry: Entry{Kind: KindPaused}})
}

// Resume begins to probe again.
func (m *Monitor) Resume() {
	m.send(request{kind: Resume, entry: Entry{Kind: KindResumed}})
}

// Stop ends the monitor, because the container has ended or is about to. When it
// returns, no probe runs and the timeline is the caller's again. A second call
// does nothing.
func (m *Monitor) Stop() {
	m.send(request{kind: Hold, entry: Entry{Kind: KindEnded}, last: true})
	<-m.done
}

// Probe asks the container now, for whoever wants to know, whatever the state.
// The result counts for nothing. It may run beside a probe of the monitor's own.
func (m *Monitor) Probe(ctx context.Context) Result {
	return ask(ctx, m.cfg.Prober, m.cfg.Check.Timeout)
}

func (m *Monitor) send(r request) {
	r.taken = make(chan struct{})
	select {
	case m.events <- r:
		<-r.taken
	case <-m.done:
	}
}

// run is what the goroutine of a monitor holds.
type run struct {
	m      *Monitor
	timer  *time.Timer // nil unless the machine is Waiting
	result chan Result // nil unless a probe runs; has room for it
	cancel context.CancelFunc
}

// loop is the shell around the machine.
func (m *Monitor) loop() {
	defer close(m.done)
	r := &run{m: m}
	first := Event{Kind: Begin, At: m.cfg.Started}
	entry := Entry{Kind: KindStarted}
	if m.cfg.Adopted {
		first.Kind, entry.Kind = Adopt, KindAdopted
	}
	r.step(first, entry)
	if m.cfg.Paused {
		r.step(Event{Kind: Hold, At: time.Now()}, Entry{Kind: KindPaused})
	}
	for {
		select {
		case req := <-m.events:
			r.take(req)
			close(req.taken)
			if req.last {
				return
			}
		case <-r.due():
			r.timer = nil
			r.step(Event{Kind: Due, At: time.Now()}, Entry{})
		case res := <-r.result:
			r.end()
			r.step(Event{Kind: Done, At: time.Now(), Result: res}, Entry{Kind: KindProbe, Result: &res})
		}
	}
}

// due is the timer's channel.
func (r *run) due() <-chan time.Time {
	if r.timer == nil {
		return nil
	}
	return r.timer.C
}

// take carries out what was asked for from outside. What changes nothing leaves
// no trace.
func (r *run) take(req request) {
	idle := r.m.state.Phase == Idle
	if req.last || idle == (req.kind == Resume) {
		r.step(Event{Kind: req.kind, At: time.Now()}, req.entry)
	}
}

// step takes one event through the machine and does what it decides.
func (r *run) step(ev Event, e Entry) {
	m := r.m
	before := m.state.Status
	after, d := m.cfg.Check.Next(m.state, ev)
	m.mu.Lock()
	m.state = after
	m.mu.Unlock()
	if d.Cancel {
		r.cancel()
		<-r.result // what is dying must not pile up
		r.end()
	}
	if after.Phase != Waiting && r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	if e.Kind != "" {
		if after.Status != before || ev.Kind == Begin {
			e.From, e.To = before, after.Status
		}
		e.Streak = after.FailingStreak
		m.write(e)
	}
	if d.Probe {
		r.probe()
	}
	if d.Next > 0 {
		r.timer = time.NewTimer(d.Next)
	}
	if d.Changed != "" && m.cfg.Changed != nil {
		m.cfg.Changed(d.Changed, ev.Result)
	}
	if d.Failed && m.cfg.Failed != nil {
		if note := m.cfg.Failed(ev.Result); note != "" {
			m.write(Entry{Kind: KindAction, Note: note})
		}
	}
}

// probe starts a probe.
func (r *run) probe() {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan Result, 1)
	r.result, r.cancel = result, cancel
	go func() { result <- ask(ctx, r.m.cfg.Prober, r.m.cfg.Check.Timeout) }()
}

// end forgets a probe that has ended.
func (r *run) end() {
	r.cancel()
	r.result, r.cancel = nil, nil
}

// write adds to the timeline.
func (m *Monitor) write(e Entry) {
	if m.cfg.Timeline == nil {
		return
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if err := m.cfg.Timeline.Append(e); err != nil {
		m.cfg.Warn(err)
	}
}

// WaitReady tries a check until it succeeds, and returns that result. When ctx
// ends first it returns the last failure, and ctx's error.
func WaitReady(ctx context.Context, c *Check, p Prober) (Result, error) {
	var last Result
	for {
		r := ask(ctx, p, c.Timeout)
		if r.ExitCode == 0 {
			return r, nil
		}
		if ctx.Err() == nil || last.Start.IsZero() {
			last = r // and not one that the end of ctx has cut
		}
		t := time.NewTimer(c.Interval)
		select {
		case <-ctx.Done():
			t.Stop()
			return last, context.Cause(ctx)
		case <-t.C:
		}
	}
}
