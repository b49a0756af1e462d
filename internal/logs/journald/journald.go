// Package journald sends lines to systemd's journal by its native protocol
// (https://systemd.io/JOURNAL_NATIVE_PROTOCOL, systemd 252), with docker's fields.
//
// go-systemd's journal package has one socket for the whole program, opened by an
// init function, and blocks for ever when journald hangs.
//
// Invariant: one line is one entry, of any bytes and any length.
package journald

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dhow/internal/logs/driver"
)

// socketPath is where journald listens.
const socketPath = "/run/systemd/journal/socket"

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{Options: driver.Describing(nil), Open: open}
}

type sender struct {
	conn    *net.UnixConn
	common  []byte // fields that all entries have
	epoch   string
	ordinal uint64
	parts   [3]partial // by stream
	buf     []byte
}

// partial is a line that comes in several records.
type partial struct {
	id      string // "" for none
	ordinal int
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	tag, err := info.Tag(o, "{{.ID}}")
	if err != nil {
		return nil, err
	}
	fields, err := info.Attributes(o, fieldName)
	if err != nil {
		return nil, err
	}
	s := &sender{epoch: newID()}
	maps.Copy(fields, map[string]string{
		"CONTAINER_ID":        info.ID(),
		"CONTAINER_ID_FULL":   info.ContainerID,
		"CONTAINER_NAME":      info.Name(),
		"CONTAINER_TAG":       tag,
		"IMAGE_NAME":          info.ContainerImageName,
		"SYSLOG_IDENTIFIER":   tag,
		"CONTAINER_LOG_EPOCH": s.epoch,
	})
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		if k != "" {
			s.common = appendField(s.common, k, []byte(fields[k]))
		}
	}
	return s, nil
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// fieldName makes a name that the journal takes: capitals, digits and underscores,
// no underscore first.
func fieldName(name string) string {
	upper := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, name)
	return strings.TrimLeft(upper, "_")
}

// appendField appends KEY=value, or for values of several lines the key, a length
// (64 bits, little-endian) and the value.
func appendField(dst []byte, key string, value []byte) []byte {
	dst = append(dst, key...)
	if bytes.IndexByte(value, '\n') < 0 {
		dst = append(dst, '=')
	} else {
		dst = append(dst, '\n')
		dst = binary.LittleEndian.AppendUint64(dst, uint64(len(value)))
	}
	dst = append(dst, value...)
	return append(dst, '\n')
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	if s.conn == nil {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: socketPath})
		if err != nil {
			return 0, err
		}
		s.conn = conn
	}
	deadline, _ := ctx.Deadline()
	s.conn.SetDeadline(deadline)
	defer context.AfterFunc(ctx, func() { s.conn.SetDeadline(time.Unix(1, 0)) })()
	for i := range batch {
		parts, ordinal := s.parts, s.ordinal
		s.entry(&batch[i])
		if err := s.write(); err != nil {
			s.parts, s.ordinal = parts, ordinal
			s.Close() // journald may have been started again
			return i, err
		}
	}
	return len(batch), nil
}

// entry encodes a record into buf.
func (s *sender) entry(r *driver.Record) {
	priority := "6" // info
	if r.Stream == driver.Stderr {
		priority = "3" // error
	}
	s.ordinal++
	b := append(s.buf[:0], s.common...)
	b = appendField(b, "PRIORITY", []byte(priority))
	b = appendField(b, "SYSLOG_TIMESTAMP", r.Time.AppendFormat(nil, time.RFC3339Nano))
	b = appendField(b, "CONTAINER_LOG_ORDINAL", strconv.AppendUint(nil, s.ordinal, 10))
	p := &s.parts[r.Stream]
	if r.Partial && p.id == "" {
		p.id = newID()
	}
	if p.id != "" {
		p.ordinal++
		b = appendField(b, "CONTAINER_PARTIAL_ID", []byte(p.id))
		b = appendField(b, "CONTAINER_PARTIAL_ORDINAL", strconv.AppendInt(nil, int64(p.ordinal), 10))
		b = appendField(b, "CONTAINER_PARTIAL_LAST", strconv.AppendBool(nil, !r.Partial))
		if r.Partial {
			b = appendField(b, "CONTAINER_PARTIAL_MESSAGE", []byte("true"))
		} else {
			*p = partial{}
		}
	}
	s.buf = appendField(b, "MESSAGE", r.Line)
}

// write sends buf: as a datagram, or, where that is too large, as a sealed file in
// memory whose descriptor is sent.
func (s *sender) write() error {
	_, err := s.conn.Write(s.buf)
	if !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer f.Close()
	if _, err := f.Write(s.buf); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	rc, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var errno error
	err = rc.Write(func(socket uintptr) bool {
		errno = unix.Sendmsg(int(socket), nil, unix.UnixRights(fd), nil, 0)
		return errno != unix.EAGAIN
	})
	return errors.Join(err, os.NewSyscallError("sendmsg", errno))
}

func (s *sender) Close() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	return err
}
