package logs

import (
	"io"
	"net"
	"strings"
	"testing"

	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// unanswered has the drivers whose protocol has no answers, pointed at an address.
func unanswered(address string) map[string]driver.Options {
	return map[string]driver.Options{
		"syslog": {"syslog-address": "tcp://" + address}, "gelf": {"gelf-address": "tcp://" + address}, "fluentd": {"fluentd-address": address},
	}
}

// TestUnreadAtTheEnd: a destination has taken lines without reading them when shipping
// ends. They are not counted as delivered, and go to whoever listens next.
func TestUnreadAtTheEnd(t *testing.T) {
	for name := range unanswered("") {
		t.Run(name, func(t *testing.T) {
			hung, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := hung.Addr().String()
			dir, c := t.TempDir(), Config{Drivers: []Driver{{name, unanswered(address)[name]}}, Info: realInfo()}
			s := mustOpen(t, dir, c)
			writeLines(t, s, numbered(0, 100))
			first, err := hung.Accept()
			if err != nil {
				t.Fatal(err)
			}
			testkit.Until(t, "all lines to be taken", func() bool { return mustStat(t, dir).Destinations[0].Shipped.Lines == 100 })
			hung.Close()
			if err := first.Close(); err != nil { // with all of it unread: a reset
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Log(err)
			}
			if d := onlyDestination(t, dir); d.Shipped.Lines != 0 || d.Waiting.Lines != 100 || d.Error == "" {
				t.Errorf("got %+v", d)
			}
			got := listen(t, address)
			s = mustOpen(t, dir, c)
			linger(t, s)
			testkit.Until(t, "every line", func() bool { return strings.Count(got(), "line ") == 100 })
		})
	}
}

// TestReadAtTheEnd: a destination that reads to the end, and is started again, gets
// nothing twice, whether it ends the connection or shipping ends first.
func TestReadAtTheEnd(t *testing.T) {
	for name := range unanswered("") {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			conns := make(chan string, 10)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						text, _ := io.ReadAll(c)
						conns <- string(text)
						c.Close()
					}()
				}
			}()
			dir, c := t.TempDir(), Config{Drivers: []Driver{{name, unanswered(l.Addr().String())[name]}}, Info: realInfo()}
			for i, lines := range [][]string{numbered(0, 100), numbered(100, 150)} {
				s := mustOpen(t, dir, c)
				writeLines(t, s, lines)
				linger(t, s)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if got := strings.Count(<-conns, "line "); got != len(lines) {
					t.Errorf("session %d: got %d lines, want %d", i, got, len(lines))
				}
			}
			if d := onlyDestination(t, dir); d.Shipped.Lines != 150 || d.Waiting.Lines != 0 || d.Error != "" {
				t.Errorf("got %+v", d)
			}
		})
	}
}
