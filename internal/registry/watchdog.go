package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"dhow/internal/errdef"
)

// commitFactor is how much longer than for a byte is waited for the answer to
// an upload: registries digest, and copy, the whole blob before they give it.
const commitFactor = 10

// watchdog cancels an exchange in which nothing has moved for too long. It
// starts awake; rest puts it to sleep while the caller does something else.
type watchdog struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	d      time.Duration
}

// errStalled is the cause of the cancellation.
var errStalled = errors.New("stalled")

func watch(ctx context.Context, d time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{ctx: ctx, cancel: cancel, d: d}
	w.timer = time.AfterFunc(d, func() { cancel(errStalled) })
	return ctx, w
}

func (w *watchdog) feed() { w.timer.Reset(w.d) }
func (w *watchdog) rest() { w.timer.Stop() }

// patience waits long once: for the answer to an upload.
func (w *watchdog) patience() { w.timer.Reset(commitFactor * w.d) }

func (w *watchdog) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// cause replaces the cancellation's text by what it was for, when it was ours.
func (w *watchdog) cause(err error) error {
	if err == nil {
		return nil
	}
	cause := context.Cause(w.ctx)
	if errors.Is(cause, errStalled) {
		return &temporary{error: errdef.As(errdef.ErrUnavailable, fmt.Errorf("no byte for %s", w.d))}
	}
	var own *sourceError
	if errors.As(cause, &own) {
		return own
	}
	return err
}

// sourceError is a failure to read what is to be sent, for which the registry
// cannot be blamed nor asked again.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// body is an answer's body under the watchdog.
type body struct {
	io.ReadCloser
	dog *watchdog
}

func (b *body) Read(p []byte) (int, error) {
	b.dog.feed()
	n, err := b.ReadCloser.Read(p)
	b.dog.rest()
	if err != nil && err != io.EOF {
		err = b.dog.cause(err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.dog.end()
	return err
}

// upload is a request's body under the watchdog, which sleeps while our own
// side makes the bytes and wakes while the registry takes them.
type upload struct {
	io.ReadCloser
	dog *watchdog
}

func (u *upload) Read(p []byte) (int, error) {
	u.dog.rest()
	n, err := u.ReadCloser.Read(p)
	switch err {
	case nil:
		u.dog.feed()
	case io.EOF:
		u.dog.patience()
	default:
		u.dog.cancel(&sourceError{err})
	}
	return n, err
}
