package engine

import (
	"bytes"
	"strings"
	"sync"
)

// tailLines and tailBytes bound what is kept of a step's output for the error
// message; the whole of it is on disk.
const (
	tailLines = 50
	tailBytes = 256 << 10
)

// tail keeps the end of a stream. Safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (t *tail) write(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*tailBytes {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailBytes:]...)
	}
}

// lines returns the last lines, oldest first.
func (t *tail) lines() []string {
	t.mu.Lock()
	text := strings.TrimRight(string(t.buf), "\r\n")
	t.mu.Unlock()
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return lines
}

// mask is written in place of a secret.
const mask = "*****"

// masker writes on, with secret values replaced. A value split over several
// writes is found: bytes that may be the beginning of one are held back until
// the next write or flush. Safe for concurrent use.
type masker struct {
	to func([]byte) error

	mu     sync.Mutex
	values [][]byte // guarded by mu
	held   []byte   // guarded by mu
}

// hide adds values. A file's last newline is not part of its secret.
func (m *masker) hide(values [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range values {
		if v = bytes.TrimRight(v, "\r\n"); len(v) > 0 {
			m.values = append(m.values, bytes.Clone(v))
		}
	}
}

func (m *masker) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.values) == 0 {
		return len(p), m.to(p)
	}
	out, rest := m.replace(append(m.held, p...), false)
	m.held = bytes.Clone(rest)
	if len(out) == 0 {
		return len(p), nil
	}
	return len(p), m.to(out)
}

func (m *masker) flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, rest := m.replace(m.held, true)
	m.held = nil
	if out = append(out, rest...); len(out) == 0 {
		return nil
	}
	return m.to(out)
}

// replace returns the text that is safe to show, and the end of data that may
// be the beginning of a value, if more can follow.
func (m *masker) replace(data []byte, last bool) (out, rest []byte) {
	for {
		at, n := m.next(data)
		if at < 0 || !last && m.begins(data[at:]) {
			break
		}
		out = append(append(out, data[:at]...), mask...)
		data = data[at+n:]
	}
	if last {
		return append(out, data...), nil
	}
	keep := m.suspect(data)
	return append(out, data[:len(data)-keep]...), data[len(data)-keep:]
}

// next finds the first value in data, the longest of those that begin there.
func (m *masker) next(data []byte) (at, n int) {
	at = -1
	for _, v := range m.values {
		i := bytes.Index(data, v)
		if i >= 0 && (at < 0 || i < at || i == at && len(v) > n) {
			at, n = i, len(v)
		}
	}
	return at, n
}

// begins says whether data is the beginning, and not the whole, of a value.
func (m *masker) begins(data []byte) bool {
	for _, v := range m.values {
		if len(data) < len(v) && bytes.HasPrefix(v, data) {
			return true
		}
	}
	return false
}

// suspect is the length of the longest end of data that begins a value.
func (m *masker) suspect(data []byte) int {
	longest := 0
	for _, v := range m.values {
		for n := min(len(v)-1, len(data)); n > longest; n-- {
			if bytes.HasSuffix(data, v[:n]) {
				longest = n
			}
		}
	}
	return longest
}
