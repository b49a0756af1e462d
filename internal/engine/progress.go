package engine

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"dhow/internal/frontend"
	"dhow/internal/llb"
	"dhow/internal/solve"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// progress turns what the solver does into BuildKit's status stream, which
// displays and clients read, and keeps every step's output: all of it in a file
// of the build's log directory, the end of it for the error message.
type progress struct {
	send func(*client.SolveStatus)
	dir  string // log directory; "" keeps none

	mu       sync.Mutex
	started  map[digest.Digest]time.Time // guarded by mu
	known    map[digest.Digest]bool      // guarded by mu; announced to the display
	tails    map[digest.Digest]*tail     // guarded by mu
	warnings []string                    // guarded by mu; those of steps
}

var _ solve.Events = (*progress)(nil)

// newProgress sends to send, which is called from several goroutines and may
// be nil.
func newProgress(send func(*client.SolveStatus), dir string) *progress {
	if send == nil {
		send = func(*client.SolveStatus) {}
	}
	return &progress{send: send, dir: dir, started: map[digest.Digest]time.Time{}, known: map[digest.Digest]bool{}, tails: map[digest.Digest]*tail{}}
}

// announce tells the display of all steps below an edge before any has begun,
// so that it can count them.
func (p *progress) announce(e llb.Edge) {
	var list []*client.Vertex
	var visit func(v *llb.Vertex)
	visit = func(v *llb.Vertex) {
		if p.known[v.Digest] {
			return
		}
		p.known[v.Digest] = true
		for _, in := range v.Inputs {
			visit(in.Vertex)
		}
		list = append(list, status(v))
	}
	p.mu.Lock()
	visit(e.Vertex)
	p.mu.Unlock()
	if len(list) > 0 {
		p.send(&client.SolveStatus{Vertexes: list})
	}
}

func status(v *llb.Vertex) *client.Vertex {
	s := &client.Vertex{Digest: v.Digest, Name: v.Name, ProgressGroup: v.Meta.ProgressGroup}
	for _, in := range v.Inputs {
		s.Inputs = append(s.Inputs, in.Vertex.Digest)
	}
	return s
}

func (p *progress) Started(v *llb.Vertex) {
	now := time.Now()
	p.mu.Lock()
	p.started[v.Digest] = now
	p.mu.Unlock()
	s := status(v)
	s.Started = &now
	p.send(&client.SolveStatus{Vertexes: []*client.Vertex{s}})
}

func (p *progress) Done(v *llb.Vertex, cached bool, err error) {
	now := time.Now()
	s := status(v)
	p.mu.Lock()
	begun := p.started[v.Digest]
	p.mu.Unlock()
	s.Started, s.Completed, s.Cached = &begun, &now, cached && !isSource(v)
	if err != nil {
		s.Error = err.Error()
	}
	p.send(&client.SolveStatus{Vertexes: []*client.Vertex{s}})
}

func isSource(v *llb.Vertex) bool { return v.Op.GetSource() != nil }

// Lost implements solve.Events.
func (p *progress) Lost(v *llb.Vertex, from string, err error) {
	j := &job{progress: p, vertex: v}
	j.Warn("the result in %s cannot be had, making it: %v", from, err)
}

// warn passes a warning of the frontend on.
func (p *progress) warn(w frontend.Warning) {
	p.send(&client.SolveStatus{Warnings: []*client.VertexWarning{{
		Vertex: digest.Digest(w.Vertex), Level: w.Level, Short: []byte(w.Short), Detail: w.Detail,
		URL: w.URL, SourceInfo: w.SourceInfo, Range: w.Range,
	}}})
}

// phase shows work that is no vertex, such as an export, as a step of its own.
func (p *progress) phase(name string, run func(job solve.JobCloser) error) error {
	return p.phaseOf(name, name, run)
}

// phaseOf is a phase that is not the only one of its name.
func (p *progress) phaseOf(id, name string, run func(job solve.JobCloser) error) error {
	v := &llb.Vertex{Digest: digest.FromString("dhow phase " + id), Name: name, Op: &pb.Op{}, Meta: &pb.OpMetadata{}}
	p.Started(v)
	job := p.Job(v)
	err := run(job)
	if cerr := job.Close(); err == nil {
		err = cerr
	}
	p.Done(v, false, err)
	return err
}

// stepWarnings returns what steps warned of.
func (p *progress) stepWarnings() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.warnings)
}

// tail returns the last lines of a step's output.
func (p *progress) tail(v *llb.Vertex) []string {
	p.mu.Lock()
	t := p.tails[v.Digest]
	p.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.lines()
}

func (p *progress) Job(v *llb.Vertex) solve.JobCloser {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tails[v.Digest]
	if t == nil {
		t = &tail{}
		p.tails[v.Digest] = t
	}
	j := &job{progress: p, vertex: v, tail: t}
	j.out.to = func(b []byte) error { return j.log(1, b) }
	j.err.to = func(b []byte) error { return j.log(2, b) }
	return j
}

// job is one running step's way to the world.
type job struct {
	progress *progress
	vertex   *llb.Vertex
	tail     *tail
	out, err masker

	mu   sync.Mutex
	file *os.File // guarded by mu; opened with the first byte
	kept int64    // guarded by mu; bytes in file
}

func (j *job) Stdout() io.Writer { return &j.out }
func (j *job) Stderr() io.Writer { return &j.err }

func (j *job) Mask(values [][]byte) {
	j.out.hide(values)
	j.err.hide(values)
}

func (j *job) log(stream int, data []byte) error {
	data = append([]byte(nil), data...)
	j.progress.send(&client.SolveStatus{Logs: []*client.VertexLog{{
		Vertex: j.vertex.Digest, Stream: stream, Data: data, Timestamp: time.Now(),
	}}})
	j.tail.write(data)
	if err := j.keep(data); err != nil {
		// The output is still shown, and the step goes on.
		j.Warn("the rest of the output is not kept: %v", err)
	}
	return nil
}

// maxStepLog bounds what is kept on disk of one step's output, in bytes: a
// program gone wild prints gigabytes in seconds.
const maxStepLog = 64 << 20

// keep writes to the step's log file. After a failure, or when it is as large as
// it may be, it does nothing.
func (j *job) keep(data []byte) (err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	room := maxStepLog - j.kept
	if j.progress.dir == "" || room <= 0 {
		return nil
	}
	defer func() {
		if err != nil {
			j.kept = maxStepLog
		}
	}()
	if j.file == nil {
		f, err := os.OpenFile(filepath.Join(j.progress.dir, logName(j.vertex.Digest)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("open step log: %w", err)
		}
		j.file = f
	}
	cut := int64(len(data)) >= room
	if cut {
		data = append(data[:room:room], fmt.Sprintf("\n[%d MiB of output; the rest is not kept]\n", maxStepLog>>20)...)
	}
	j.kept += int64(len(data))
	_, err = j.file.Write(data)
	return err
}

// logName is the file of a step's output in a build's log directory.
func logName(d digest.Digest) string { return d.Encoded()[:16] + ".log" }

func (j *job) Status(id string, current, total int64, started time.Time, done bool) {
	now := time.Now()
	s := &client.VertexStatus{ID: id, Vertex: j.vertex.Digest, Name: id, Current: current, Total: total, Timestamp: now, Started: &started}
	if done {
		s.Completed = &now
	}
	j.progress.send(&client.SolveStatus{Statuses: []*client.VertexStatus{s}})
}

func (j *job) Warn(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	j.progress.mu.Lock()
	j.progress.warnings = append(j.progress.warnings, j.vertex.Name+": "+msg)
	j.progress.mu.Unlock()
	j.progress.send(&client.SolveStatus{Warnings: []*client.VertexWarning{{Vertex: j.vertex.Digest, Level: 1, Short: []byte(msg)}}})
}

// Close flushes what the maskers held back and closes the log file.
func (j *job) Close() error {
	err := j.out.flush()
	if e := j.err.flush(); err == nil {
		err = e
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		if e := j.file.Close(); err == nil {
			err = e
		}
		j.file = nil
	}
	return err
}
