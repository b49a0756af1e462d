package bkapi

import (
	"context"
	"sync"

	"github.com/moby/buildkit/client"
)

// maxJournal bounds what is kept of a build's output for those who ask for its
// status late, in bytes. What is beyond goes only to who listens at the time.
const maxJournal = 16 << 20

// journal keeps the events of one build for any number of readers, who may come
// before the first or after the last.
type journal struct {
	mu     sync.Mutex
	events []*client.SolveStatus // guarded by mu
	bytes  int                   // guarded by mu; of logs
	more   chan struct{}         // guarded by mu; closed and renewed by each event
	done   bool                  // guarded by mu

	ended chan struct{} // closed with the last event
}

func newJournal() *journal {
	return &journal{more: make(chan struct{}), ended: make(chan struct{})}
}

// add takes one event. It must not be changed afterwards.
func (j *journal) add(s *client.SolveStatus) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.done {
		return
	}
	for _, l := range s.Logs {
		j.bytes += len(l.Data)
	}
	if j.bytes > maxJournal {
		j.bytes -= j.forget()
	}
	j.events = append(j.events, s)
	close(j.more)
	j.more = make(chan struct{})
}

// forget drops the logs of the older half of the events; their places stay, so
// that readers keep theirs. It returns how many bytes that freed.
func (j *journal) forget() (freed int) {
	for i, s := range j.events[:len(j.events)/2+1] {
		if len(s.Logs) == 0 {
			continue
		}
		for _, l := range s.Logs {
			freed += len(l.Data)
		}
		rest := *s
		rest.Logs = []*client.VertexLog{{Vertex: s.Logs[0].Vertex, Stream: s.Logs[0].Stream, Timestamp: s.Logs[0].Timestamp, Data: []byte("…\n")}}
		freed -= len(rest.Logs[0].Data)
		j.events[i] = &rest
	}
	return freed
}

// close says that no event will follow.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.done {
		j.done = true
		close(j.more)
		close(j.ended)
	}
}

// read sends all events, in order, until the journal is closed.
func (j *journal) read(ctx context.Context, send func(*client.SolveStatus) error) error {
	for at := 0; ; {
		j.mu.Lock()
		events, more, done := j.events[at:], j.more, j.done
		j.mu.Unlock()
		at += len(events)
		if len(events) > 0 {
			if err := send(join(events)); err != nil {
				return err
			}
			continue
		}
		if done {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// join makes one event of several.
func join(events []*client.SolveStatus) *client.SolveStatus {
	all := &client.SolveStatus{}
	for _, s := range events {
		all.Vertexes = append(all.Vertexes, s.Vertexes...)
		all.Statuses = append(all.Statuses, s.Statuses...)
		all.Logs = append(all.Logs, s.Logs...)
		all.Warnings = append(all.Warnings, s.Warnings...)
	}
	return all
}
