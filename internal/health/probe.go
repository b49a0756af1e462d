package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Prober asks a container once. It returns when it has an answer or soon after
// ctx has ended, with nothing left running. exitCode is 0 for healthy. output,
// which may stem from the container, has at most MaxOutput bytes and "...". An
// error says why there is no answer; output may hold what came until then.
type Prober interface {
	Probe(ctx context.Context) (exitCode int, output string, err error)
}

// Runner runs a program inside the container, as docker runs a HEALTHCHECK: with
// the user, environment and working directory of the container's first process,
// and nothing to read. output takes both of its streams. It returns how the
// program ended, 128 and the signal's number for one that was killed.
//
// When ctx ends it kills the program, and in any case, before it returns, all
// that the program has started and left behind.
type Runner func(ctx context.Context, argv []string, output *os.File) (exitCode int, err error)

// Dialer connects to a TCP address as a process inside the container would.
type Dialer func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

// MaxOutput is how many bytes of a probe's output are kept, as with docker.
const MaxOutput = 4096

// ask runs one probe to its end or its timeout.
func ask(ctx context.Context, p Prober, timeout time.Duration) Result {
	r := Result{Start: time.Now()}
	probe, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, out, err := p.Probe(probe)
	r.End = time.Now()
	switch {
	case err == nil:
		r.ExitCode, r.Output = code, out
	case probe.Err() != nil && ctx.Err() == nil:
		// docker's words, which people search logs for
		r.ExitCode, r.Output = -1, fmt.Sprintf("Health check exceeded timeout (%v)", timeout)
		if out != "" {
			r.Output += ": " + out
		}
	default:
		r.ExitCode, r.Output = -1, err.Error()
		if out != "" {
			r.Output += ": " + out
		}
	}
	return r
}

// bounded keeps the first MaxOutput bytes that are written to it.
type bounded struct {
	mu   sync.Mutex
	buf  []byte // guarded by mu
	more bool   // guarded by mu: something was left out
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(len(p), MaxOutput-len(b.buf))
	b.buf = append(b.buf, p[:n]...)
	b.more = b.more || n < len(p)
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.more {
		return string(b.buf)
	}
	cut := b.buf
	for i := 0; i < utf8.UTFMax-1 && len(cut) > 0 && !utf8.Valid(cut[max(0, len(cut)-utf8.UTFMax):]); i++ {
		cut = cut[:len(cut)-1]
	}
	if !utf8.Valid(cut) {
		cut = b.buf // it was not text to begin with
	}
	return string(cut) + "..."
}

// drainTime is how long the rest of a program's output is waited for after its
// end. It lies in the pipe already, unless something escaped the Runner and
// holds the pipe open.
const drainTime = 100 * time.Millisecond

// commandProbe runs a program in the container.
type commandProbe struct {
	argv []string
	run  Runner
}

// Probe reads all that the program writes, and throws away what is too much: a
// program must not stop because nobody reads.
func (p *commandProbe) Probe(ctx context.Context) (int, string, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, "", fmt.Errorf("run the health check: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // our end alone, for the deadline
		unix.Close(fds[0])
		unix.Close(fds[1])
		return 0, "", fmt.Errorf("run the health check: %w", err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output")
	defer r.Close()
	var out bounded
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(&out, r) // it ends by the deadline or the end of the file
	}()
	code, err := p.run(ctx, p.argv, w)
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(drainTime)) // fails only for files that never wait
	<-drained
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return code, out.String(), err
}

// tcpProbe connects, and no more.
type tcpProbe struct {
	target Target
	dial   Dialer
}

func (p *tcpProbe) Probe(ctx context.Context) (int, string, error) {
	conn, err := p.target.connect(ctx, p.dial)
	if err != nil {
		return failure(ctx, err)
	}
	// Reset instead of the closing handshake: no connection is left in TIME_WAIT.
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // the handshake does, too
	}
	conn.Close()
	return 0, "connected to " + conn.RemoteAddr().String(), nil
}

// connect tries the target's addresses in order.
func (t Target) connect(ctx context.Context, dial Dialer) (net.Conn, error) {
	var first error
	for _, a := range t.addresses() {
		conn, err := dial(ctx, a)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// failure is the outcome of a probe that got no answer: without one in time, a
// timeout, and else a failed check.
func failure(ctx context.Context, err error) (int, string, error) {
	if ctx.Err() != nil {
		return 0, "", ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, "", context.DeadlineExceeded
	}
	return 1, bound(err.Error()), nil
}

// bound cuts a text as the output of a program is cut.
func bound(s string) string {
	var b bounded
	_, _ = b.Write([]byte(s)) // cannot fail
	return b.String()
}
