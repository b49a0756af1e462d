package logs

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf8"

	"dhow/internal/logs/driver"
)

// jsonPart is where docker's json-file cuts lines: a line of this many bytes or
// more is written as several entries, all but the last without a newline.
const jsonPart = driver.ShortestMaxLine

// jsonFile is the format of docker's driver json-file, byte for byte: one object
// a line, {"log":"…\n","stream":"stdout","attrs":{…},"time":"…"}. Invalid UTF-8
// is written as U+FFFD; the bytes themselves are in the segment's raw file.
type jsonFile struct {
	attrs []byte // a JSON object, or nil
}

// appendJSON appends one entry; end is what appendEnding made for it. It returns
// false when bytes of the line had to be replaced.
func appendJSON(dst, line []byte, whole bool, end []byte) ([]byte, bool) {
	if len(line) == 0 && !whole {
		return append(append(dst, '{'), end...), true
	}
	dst = append(dst, `{"log":"`...)
	dst, exact := driver.AppendJSON(dst, line)
	if whole {
		dst = append(dst, '\\', 'n')
	}
	dst = append(dst, `",`...)
	return append(dst, end...), exact
}

// appendEnding appends what an entry of the stream and time has behind its line.
func (j jsonFile) appendEnding(dst []byte, stream Stream, at time.Time) []byte {
	dst = append(dst, `"stream":"`...)
	dst = append(dst, stream.String()...)
	dst = append(dst, '"')
	if j.attrs != nil {
		dst = append(dst, `,"attrs":`...)
		dst = append(dst, j.attrs...)
	}
	dst = append(dst, `,"time":"`...)
	dst = at.UTC().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, "\"}\n"...)
}

// jsonParser reads entries. It keeps what neighbours have in common.
type jsonParser struct {
	scratch []byte
	prefix  [len("2006-01-02T15:04:05.")]byte // of the last time
	seconds int64                             // of that
}

// parse reads one line without its newline. False means that it is no entry.
func (p *jsonParser) parse(s []byte, e *entry) bool {
	if p.parseOwn(s, e) {
		return true
	}
	return p.parseAny(s, e)
}

// parseOwn reads what appendJSON writes, in one pass.
func (p *jsonParser) parseOwn(s []byte, e *entry) bool {
	rest, ok := bytes.CutPrefix(s, []byte(`{"log":"`))
	if !ok {
		return false
	}
	e.line, e.whole, rest, ok = p.logText(rest)
	if !ok {
		return false
	}
	switch {
	case bytes.HasPrefix(rest, []byte(`,"stream":"stdout"`)):
		e.stream = Stdout
	case bytes.HasPrefix(rest, []byte(`,"stream":"stderr"`)):
		e.stream = Stderr
	default:
		return false
	}
	rest = rest[len(`,"stream":"stdout"`):]
	e.attrs = nil
	if bytes.HasPrefix(rest, []byte(`,"attrs":{`)) {
		i := bytes.LastIndex(rest, []byte(`},"time":"`))
		if i < 0 {
			return false
		}
		e.attrs = rest[len(`,"attrs":`) : i+1]
		rest = rest[i+1:]
	}
	rest, ok = bytes.CutPrefix(rest, []byte(`,"time":"`))
	if !ok {
		return false
	}
	rest, ok = bytes.CutSuffix(rest, []byte(`"}`))
	if !ok {
		return false
	}
	e.nanos, ok = p.time(rest)
	return ok
}

// logText reads the string up to its quote: its bytes, whether they ended with
// a newline (which is cut), and what follows.
func (p *jsonParser) logText(s []byte) (line []byte, whole bool, rest []byte, ok bool) {
	q := bytes.IndexByte(s, '"')
	if q < 0 {
		return nil, false, nil, false
	}
	b := bytes.IndexByte(s[:q], '\\')
	switch {
	case b < 0:
		return s[:q], false, s[q+1:], true
	case b == q-2 && s[q-1] == 'n':
		return s[:b], true, s[q+1:], true
	}
	q = closingQuote(s)
	if q < 0 {
		return nil, false, nil, false
	}
	line, ok = p.unescape(s[:q])
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line, whole = line[:n-1], true
	}
	return line, whole, s[q+1:], ok
}

// closingQuote finds the quote that no backslash escapes.
func closingQuote(s []byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

// unescape undoes driver.AppendJSON. Escapes that it does not write are left to
// parseAny.
func (p *jsonParser) unescape(s []byte) ([]byte, bool) {
	out := p.scratch[:0]
	for len(s) > 0 {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			out = append(out, s...)
			break
		}
		out = append(out, s[:i]...)
		s = s[i+1:]
		if len(s) == 0 {
			return nil, false
		}
		switch s[0] {
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case '"', '\\':
			out = append(out, s[0])
		case 'u':
			if len(s) < 5 {
				return nil, false
			}
			r, ok := hex4(s[1:5])
			if !ok || (r >= 0xd800 && r < 0xe000) {
				return nil, false
			}
			out = utf8.AppendRune(out, r)
			s = s[4:]
		default:
			return nil, false
		}
		s = s[1:]
	}
	p.scratch = out
	return out, true
}

func hex4(s []byte) (rune, bool) {
	var r rune
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// time reads RFC 3339 in UTC. The seconds are worked out once for neighbours of
// the same second.
func (p *jsonParser) time(s []byte) (int64, bool) {
	n := len(p.prefix)
	if len(s) < n || s[len(s)-1] != 'Z' {
		return p.timeAny(s)
	}
	if !bytes.Equal(s[:n-1], p.prefix[:n-1]) {
		t, err := time.Parse("2006-01-02T15:04:05", string(s[:n-1]))
		if err != nil {
			return 0, false
		}
		copy(p.prefix[:], s[:n-1])
		p.seconds = t.Unix()
	}
	if len(s) == n { // no decimals
		return p.seconds * 1e9, true
	}
	digits := s[n : len(s)-1]
	if s[n-1] != '.' || len(digits) > 9 {
		return p.timeAny(s)
	}
	var nanos int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		nanos = nanos*10 + int64(c-'0')
	}
	for range 9 - len(digits) {
		nanos *= 10
	}
	return p.seconds*1e9 + nanos, true
}

func (p *jsonParser) timeAny(s []byte) (int64, bool) {
	t, err := time.Parse(time.RFC3339Nano, string(s))
	return t.UnixNano(), err == nil
}

// parseAny reads entries that others wrote.
func (p *jsonParser) parseAny(s []byte, e *entry) bool {
	var v struct {
		Log    string          `json:"log"`
		Stream string          `json:"stream"`
		Attrs  json.RawMessage `json:"attrs"`
		Time   time.Time       `json:"time"`
	}
	if json.Unmarshal(s, &v) != nil || v.Time.IsZero() {
		return false
	}
	e.stream = driver.Stdout
	if v.Stream == "stderr" {
		e.stream = driver.Stderr
	}
	e.line, e.whole = bytes.CutSuffix([]byte(v.Log), []byte("\n"))
	e.attrs, e.nanos = v.Attrs, v.Time.UnixNano()
	return true
}
