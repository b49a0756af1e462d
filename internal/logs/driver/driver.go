// Package driver is the seam between the log store and the log drivers: what a
// line is (Record), what is known of its container (Info), and what a driver
// has to provide (Kind, Sender).
//
// A driver is one small package below logs that turns records into requests of
// some protocol. It has a function
//
//	func Kind() driver.Kind
//
// that logs/kinds.go lists. Kind names every option the driver takes, with a check
// of its value, so that a bad one is refused when the container is created.
// Kind.Open makes a Sender and touches neither disk nor network. Sender.Send
// connects when it must, sends one batch, waits until the other side has it,
// and returns. It is called again with what was not accepted.
//
// Everything else belongs to the pipeline in package logs, once for all drivers:
// batching, retries with backoff, the durable cursor, bounds, counters, linger.
// So a driver holds no queue, starts no goroutine that outlives Send unless Close
// ends it, never sleeps, and never retries on its own.
//
// What went wrong is told by the kind of the error: see Refuse, Reject and
// RetryAfter. Any other error means that trying again later may help.
//
// Invariant: nothing here outlives the call that started it, but a Conn.
package driver

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Stream says where a line was written.
type Stream uint8

// The streams of a container.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return ""
}

// Record is one line of output.
type Record struct {
	Time   time.Time // UTC, when the line was read
	Stream Stream
	// Line is the line without its newline. It is valid until the next record is
	// asked for, or until Send returns.
	Line []byte
	// Partial says that no newline ended the line: the stream ended there, or the
	// line is longer than one record holds and the next one of the stream goes on.
	Partial bool
	// Attrs is a JSON object of attributes (labels, env, tag), as json-file keeps
	// them beside each line; nil where there are none.
	Attrs []byte
	// Seq is the number of the line in its log, from 1, for destinations that leave
	// out what they have already. Parts of one line share it.
	Seq uint64
	// Lost is how many lines directly before this one are gone: they were rotated
	// away before this reader came to them.
	Lost uint64
}

// Kind is what a driver is: its options, and how it is opened.
type Kind struct {
	// Options has every option that the driver knows, with the check of its value;
	// nil takes any value. The options that all drivers share (mode,
	// max-buffer-size, rate, cache-…) are not listed.
	Options map[string]func(value string) error
	// Any says that options which are not listed are taken, too: the driver is
	// someone else's program.
	Any bool
	// Check refuses options that do not go together; nil refuses none.
	Check func(Options) error
	// Open makes the sender. It is called when the container starts; the options
	// are checked.
	Open func(Info, Options) (Sender, error)
	// Delivery says how the pipeline is to treat the destination; nil is the zero
	// Delivery.
	Delivery func(Options) Delivery
}

// Delivery is how the pipeline treats a destination. Zero means its default.
type Delivery struct {
	Records int           // lines in a batch; default 1000
	Bytes   int           // bytes of the lines in a batch; default 512 KiB
	Line    int           // bytes of one line; longer ones come in parts (Partial); default 1 MiB
	Fill    time.Duration // how long a batch may wait to fill up; default: what is there is sent
	Timeout time.Duration // how long Send may take; default 30 s
	Retry   time.Duration // pause between tries; default: from 100 ms, doubled up to 30 s
	Tries   int           // in a row that may fail before the destination is parked; default: any number
	Bound   int64         // bytes that may wait for the destination; default: what the store holds
	// Unacknowledged says that the protocol has no answers, so that a batch which
	// was sent just before a connection broke may not have been read. It is sent
	// again.
	Unacknowledged bool
}

// Sender delivers records to one destination. It is used by one goroutine.
type Sender interface {
	// Send delivers the records in order, and returns how many of them, from the
	// first, need not be sent again: the destination has them. With a nil error
	// it is all of them, whatever the number. It returns soon after ctx ends. It keeps nothing of the batch.
	Send(ctx context.Context, batch []Record) (int, error)
	// Close ends connections. Nothing is flushed: what counts was accepted in Send.
	Close() error
}

// Verifier is a Sender that can say, when the container starts, whether the
// destination would take anything. An error keeps the container from starting, so
// Verify returns nil unless the options ask for it.
type Verifier interface {
	Verify(ctx context.Context) error
}

// Finisher is a Sender that keeps records back in the hope of more (Hold). Finish
// says that no more will come: what there is has to be sent.
type Finisher interface {
	Finish()
}

// Teller is a Sender whose protocol has no answers, but which knows how much was
// read (Conn.Told). When a connection breaks, batches that were not read are sent
// again.
type Teller interface {
	Told() (written, unread int64)
}

// Ender is a Teller that can ask, when nothing follows, whether everything was read
// (Conn.End). When it was not, what was sent last is sent again by whoever ships next.
type Ender interface {
	End(ctx context.Context) bool
}

// fault is an error of a destination, with what to do about it.
type fault struct {
	error
	verdict verdict
	after   time.Duration
	some    int // records of the batch that were rejected, when the rest was taken
}

type verdict uint8

const (
	again verdict = iota
	refused
	rejected
	held
)

func (f *fault) Unwrap() error { return f.error }

// Refuse marks the error of a destination that will not take anything as it is
// asked: wrong credentials, no such endpoint, a certificate that is not trusted.
// The destination is parked: shown, and tried again seldom.
func Refuse(err error) error { return &fault{error: err, verdict: refused} }

// Reject marks the error of a destination that will never take the first record
// that was not accepted: too large, not to its taste. It is counted, kept aside
// and left out.
func Reject(err error) error { return &fault{error: err, verdict: rejected} }

// RejectSome marks the error of a destination that took the batch, but for some
// records, and does not say which.
func RejectSome(err error, records int) error { return &fault{error: err, some: records} }

// Some returns how many records RejectSome marked err with, or 0.
func Some(err error) int { return verdictOf(err).some }

// RetryAfter marks the error of a destination that said when to come back.
func RetryAfter(err error, d time.Duration) error { return &fault{error: err, after: d} }

// Hold is what Send returns when the records that it did not accept are to come
// again together with what follows them, or after d alone: they may be the
// beginning of something. It is no failure. A batch that is full (Delivery) has to
// be sent in any case, at least in part.
func Hold(d time.Duration) error {
	return &fault{error: errors.New("more may follow"), verdict: held, after: d}
}

// IsHeld says whether err is of Hold.
func IsHeld(err error) bool { return verdictOf(err).verdict == held }

// IsRefused says whether err was marked by Refuse.
func IsRefused(err error) bool { return verdictOf(err).verdict == refused }

// IsRejected says whether err was marked by Reject.
func IsRejected(err error) bool { return verdictOf(err).verdict == rejected }

// After returns the time that RetryAfter marked err with, or 0.
func After(err error) time.Duration { return verdictOf(err).after }

func verdictOf(err error) fault {
	var f *fault
	if errors.As(err, &f) {
		return *f
	}
	return fault{}
}

// HTTPStatus turns a response's status into an error of the right kind: nil for
// 2xx, RetryAfter for 429 and 503, Reject for what is wrong with the records,
// Refuse for what is wrong with the destination. body is the beginning of the
// response, for the message; retryAfter its Retry-After header.
func HTTPStatus(code int, body []byte, retryAfter string, now time.Time) error {
	if code >= 200 && code < 300 {
		return nil
	}
	if len(body) > 200 {
		body = body[:200]
	}
	err := fmt.Errorf("the server answered %d: %q", code, body)
	switch code {
	case 429, 503:
		return RetryAfter(err, parseRetryAfter(retryAfter, now))
	case 400, 413, 422:
		return Reject(err)
	case 408, 409, 425:
		return err
	}
	if code >= 300 && code < 500 {
		return Refuse(err)
	}
	return err
}
