package health

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"dhow/internal/sys"

	"github.com/moby/moby/api/types/container"
)

// What happened, in an Entry.
const (
	KindProbe   = "probe"   // a probe ended: Result is set
	KindStarted = "started" // the container started; To is starting
	KindAdopted = "adopted" // a new supervisor took the running container over
	KindPaused  = "paused"  // nothing is probed
	KindResumed = "resumed"
	KindEnded   = "ended"  // the container, or its supervisor in good order
	KindAction  = "action" // what was done about an unhealthy container: Note says it
)

// Entry is one line of a timeline.
type Entry struct {
	Seq  uint64    // counts up from 1 and is never used twice
	At   time.Time // UTC
	Kind string
	// From and To are the container's status before and after, both "" where it
	// stayed as it was.
	From, To container.HealthStatus
	Streak   int // failures in a row, after a probe
	Result   *Result
	Note     string
}

// line is an Entry as it is written: one JSON object a line.
type line struct {
	Seq    uint64                 `json:"n"`
	At     int64                  `json:"t"` // nanoseconds since 1970 UTC; of a probe, its end
	Kind   string                 `json:"k"`
	From   container.HealthStatus `json:"from,omitempty"`
	To     container.HealthStatus `json:"to,omitempty"`
	Streak int                    `json:"streak,omitempty"`
	Took   int64                  `json:"took,omitempty"` // nanoseconds, of a probe
	Exit   int                    `json:"exit,omitempty"`
	Out    string                 `json:"out,omitempty"`
	Same   bool                   `json:"same,omitempty"` // the output is the last probe's
	Note   string                 `json:"note,omitempty"`
}

// The file may grow to maxTimeline bytes and is then made again from what is
// worth most in it, in at most keepTimeline bytes: the last results, which
// inspect shows, and what is not an ordinary probe.
const (
	maxTimeline  = 256 << 10
	keepTimeline = 96 << 10
	// oldOutput is what is left of an old probe's output then.
	oldOutput = 512
)

// Timeline is the writer of a timeline, of which there is one at a time: the
// container's supervisor. It is for one goroutine at a time.
//
// A line is written by one write(2). A line that a crash has cut short is cut
// off when the file is opened again.
type Timeline struct {
	path string
	file *os.File
	size int64
	seq  uint64
	last string // output of the last probe
	lost int    // entries that could not be written
}

// OpenTimeline opens the timeline at path, which is made if it is missing. The
// directory has to be there. The caller closes it.
func OpenTimeline(path string) (*Timeline, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the health timeline: %w", err)
	}
	t := &Timeline{path: path, file: f}
	if err := t.recover(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open the health timeline: %w", err)
	}
	return t, nil
}

// recover finds the end of what is whole, and cuts off the rest.
func (t *Timeline) recover() error {
	data, err := readBounded(t.file)
	if err != nil {
		return err
	}
	d := decoder{}
	entries, whole := d.decode(data)
	t.size, t.last = int64(whole), d.last
	if n := len(entries); n > 0 {
		t.seq = entries[n-1].Seq
	}
	return t.file.Truncate(t.size)
}

// readBounded reads a timeline, and no more of a file that is something else.
func readBounded(f *os.File) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(f, 0, 2*maxTimeline))
}

// Append writes an entry, with the next Seq. An entry that cannot be written
// (the disk is full) is lost, and the next one says so.
func (t *Timeline) Append(e Entry) error {
	e.Seq = t.seq + 1
	if t.lost > 0 {
		e.Note = joinNote(e.Note, fmt.Sprintf("%d earlier entries could not be written", t.lost))
	}
	data, last := encode(e, t.last)
	if t.size+int64(len(data)) > maxTimeline {
		if err := t.compact(); err != nil {
			t.lost++
			return fmt.Errorf("write the health timeline: %w", err)
		}
		data, last = encode(e, t.last)
	}
	n, err := t.file.Write(data)
	if err != nil {
		t.lost++
		if n > 0 { // a part would spoil the next line
			err = errors.Join(err, t.file.Truncate(t.size))
		}
		return fmt.Errorf("write the health timeline: %w", err)
	}
	t.size += int64(n)
	t.seq, t.last, t.lost = e.Seq, last, 0
	return nil
}

// Health is what the timeline says of the container now.
func (t *Timeline) Health() (*container.Health, error) {
	data, err := readBounded(t.file)
	if err != nil {
		return nil, fmt.Errorf("read the health timeline: %w", err)
	}
	entries, _ := new(decoder).decode(data)
	return Summary(entries), nil
}

// Close closes the file.
func (t *Timeline) Close() error { return t.file.Close() }

// compact replaces the file by a smaller one.
func (t *Timeline) compact() error {
	data, err := readBounded(t.file)
	if err != nil {
		return err
	}
	entries, _ := new(decoder).decode(data)
	var buf bytes.Buffer
	t.last = ""
	for _, e := range keep(entries) {
		var l []byte
		l, t.last = encode(e, t.last)
		buf.Write(l)
	}
	if err := sys.WriteFileAtomic(t.path, buf.Bytes(), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(t.path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	t.file.Close()
	t.file, t.size = f, int64(buf.Len())
	return nil
}

// keep chooses the entries that outlive a compaction, at most keepTimeline
// bytes: the last results as they are, then what is not an ordinary probe, then
// the youngest of the others.
func keep(entries []Entry) []Entry {
	room := keepTimeline
	var kept []Entry
	take := func(class func(i int, e *Entry) bool) {
		for i, e := range slices.Backward(entries) {
			if e.Seq == 0 || !class(i, &e) {
				continue
			}
			l, _ := encode(e, "")
			if room -= len(l); room < 0 {
				return
			}
			kept = append(kept, e)
			entries[i].Seq = 0
		}
	}
	results := 0
	take(func(_ int, e *Entry) bool {
		if e.Result != nil {
			results++
		}
		return e.Result != nil && results <= maxLog
	})
	for i := range entries {
		if e := &entries[i]; e.Seq != 0 && e.Result != nil && len(e.Result.Output) > oldOutput {
			short := *e.Result
			short.Output = short.Output[:oldOutput] + "..."
			e.Result = &short
		}
	}
	take(func(_ int, e *Entry) bool { return e.Kind != KindProbe || e.To != "" })
	room = min(room, keepTimeline/4)
	take(func(int, *Entry) bool { return true })
	slices.SortFunc(kept, func(a, b Entry) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
	return kept
}

// encode is an entry's line, and the output that "same" stands for behind it.
func encode(e Entry, last string) ([]byte, string) {
	l := line{Seq: e.Seq, At: e.At.UnixNano(), Kind: e.Kind, From: e.From, To: e.To, Streak: e.Streak, Note: e.Note}
	if r := e.Result; r != nil {
		l.At, l.Took, l.Exit = r.End.UnixNano(), int64(r.End.Sub(r.Start)), r.ExitCode
		if l.Same = r.Output != "" && r.Output == last; !l.Same {
			l.Out = r.Output
		}
		last = r.Output
	}
	data, err := json.Marshal(l)
	if err != nil {
		panic(err) // it holds nothing that JSON has no form for
	}
	return append(data, '\n'), last
}

// decoder turns lines back into entries.
type decoder struct {
	last string // output of the probe before
}

// decode returns the entries of whole lines, and how many bytes those take. It
// stops at the first line that is not an entry.
func (d *decoder) decode(data []byte) (entries []Entry, whole int) {
	for {
		n := bytes.IndexByte(data[whole:], '\n')
		if n < 0 {
			return entries, whole
		}
		var l line
		if json.Unmarshal(data[whole:whole+n], &l) != nil || l.Seq == 0 || l.Kind == "" {
			return entries, whole
		}
		whole += n + 1
		entries = append(entries, d.entry(l))
	}
}

func (d *decoder) entry(l line) Entry {
	e := Entry{Seq: l.Seq, At: time.Unix(0, l.At).UTC(), Kind: l.Kind, From: l.From, To: l.To, Streak: l.Streak, Note: l.Note}
	if l.Kind != KindProbe {
		return e
	}
	if !l.Same {
		d.last = l.Out
	}
	e.Result = &Result{Start: e.At.Add(-time.Duration(l.Took)), End: e.At, ExitCode: l.Exit, Output: d.last}
	return e
}

// Summary is what docker's inspect shows, from a timeline: nil for an empty one.
func Summary(entries []Entry) *container.Health {
	if len(entries) == 0 {
		return nil
	}
	h := &container.Health{Log: []*Result{}}
	for _, e := range entries {
		if e.To != "" {
			h.Status = e.To
		}
		switch {
		case e.Kind == KindStarted:
			h.FailingStreak = 0
		case e.Result != nil:
			h.FailingStreak = e.Streak
			h.Log = append(h.Log, e.Result)
		}
	}
	h.Log = h.Log[max(0, len(h.Log)-maxLog):]
	return h
}

func joinNote(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}
