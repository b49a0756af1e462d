package logs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// The tests here send to servers that others wrote: rsyslog and syslog-ng
// (scripts/logservers, DHOW_LOGSERVERS), systemd-journald, and receivers of the
// OpenTelemetry Collector (test/collector). What is not there is skipped.

// sample is what is sent: each line has something that is easily got wrong.
func sample() []Record {
	at := time.Date(2026, 2, 3, 4, 5, 6, 789_000_000, time.UTC)
	lines := []string{"plain", "ünïcode ✓", `"quotes" <&> and \ backslash`, "tab\tand %s %d", "[brackets] {braces} key=value", strings.Repeat("long ", 1000) + "end"}
	var all []Record
	for i, l := range lines {
		r := Record{Time: at.Add(time.Duration(i) * time.Second), Stream: Stdout, Seq: uint64(i + 1), Line: []byte(l)}
		if i%2 == 1 {
			r.Stream = Stderr
		}
		all = append(all, r)
	}
	return all
}

func realInfo() Info {
	return Info{ContainerID: strings.Repeat("ab", 32), ContainerName: "web", ContainerImageName: "shop:1.2",
		ContainerLabels: map[string]string{"app": "shop"}, ContainerEnv: []string{"VER=3"}}
}

// sendSample sends the sample with a driver, trying again until the server is up.
func sendSample(t *testing.T, name string, o driver.Options) {
	t.Helper()
	if err := Check(name, o); err != nil {
		t.Fatal(err)
	}
	s, err := kinds()[name]().Open(realInfo(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for deadline := time.Now().Add(testkit.Patience); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
		_, err := s.Send(ctx, sample())
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// freeAddress returns an address that nobody listens on.
func freeAddress(t *testing.T) (address, host, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, _ = net.SplitHostPort(l.Addr().String())
	return l.Addr().String(), host, port
}

// awaitUDP waits until somebody has a datagram socket on a port of 127.0.0.1: what
// is sent before is lost, and nobody is told.
func awaitUDP(t *testing.T, port string) {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	socket := fmt.Sprintf(": 0100007F:%04X ", n)
	testkit.Until(t, "a server on UDP port "+port, func() bool {
		data, err := os.ReadFile("/proc/net/udp")
		return err == nil && strings.Contains(string(data), socket)
	})
}

// server starts a program that ends with the test.
func server(t *testing.T, env []string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %.3000s", filepath.Base(name), out.String())
		}
	})
}

// certificates writes an authority and a certificate for 127.0.0.1 with its key.
func certificates(t *testing.T, dir string) (ca, cert, key string) {
	t.Helper()
	make := func(name string, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (string, string, *x509.Certificate, *ecdsa.PrivateKey) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, signer = template, k
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &k.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		kder, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		write := func(file, kind string, data []byte) string {
			path := filepath.Join(dir, file)
			if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return write(name+".crt", "CERTIFICATE", der), write(name+".key", "PRIVATE KEY", kder), c, k
	}
	until := time.Now().Add(time.Hour)
	ca, _, parent, signer := make("ca", &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test ca"}, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	cert, key, _, _ = make("server", &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, parent, signer)
	return ca, cert, key
}

// logserver finds one of the unpacked servers.
func logserver(t *testing.T, name string) (root, path string, env []string) {
	t.Helper()
	root = os.Getenv("DHOW_LOGSERVERS")
	if root == "" {
		t.Skip("DHOW_LOGSERVERS is not set: scripts/logservers DIR unpacks rsyslog and syslog-ng")
	}
	path = filepath.Join(root, "usr/sbin", name)
	if _, err := os.Stat(path); err != nil {
		t.Skip(err)
	}
	libs := []string{"usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib/syslog-ng"}
	for i := range libs {
		libs[i] = filepath.Join(root, libs[i])
	}
	return root, path, []string{"LD_LIBRARY_PATH=" + strings.Join(libs, ":")}
}

// awaitLines waits until the file has every line of the sample, in order, each
// after the wanted prefix.
func awaitLines(t *testing.T, path string, prefix func(r Record) string) {
	t.Helper()
	var want []string
	for _, r := range sample() {
		want = append(want, prefix(r)+string(r.Line))
	}
	var got []string
	testkit.Until(t, "the lines", func() bool {
		data, err := os.ReadFile(path)
		got = strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
		return err == nil && strings.HasSuffix(string(data), "\n") && len(got) >= len(want) // the last one whole
	})
	equal(t, got, want)
}

func priority(r Record) string {
	if r.Stream == Stderr {
		return "local3.err"
	}
	return "local3.info"
}

func TestRsyslog(t *testing.T) {
	root, path, env := logserver(t, "rsyslogd")
	modules, err := filepath.Glob(filepath.Join(root, "usr/lib/*/rsyslog"))
	if err != nil || len(modules) != 1 {
		t.Fatal(modules, err)
	}
	for _, format := range []string{"rfc3164", "rfc5424", "rfc5424micro", ""} {
		for _, scheme := range []string{"udp", "tcp", "tcp+tls", "unixgram"} {
			t.Run(format+scheme, func(t *testing.T) {
				dir := t.TempDir()
				address, host, port := freeAddress(t)
				ca, cert, key := certificates(t, dir)
				o := driver.Options{"syslog-address": scheme + "://" + address, "syslog-facility": "local3", "tag": "{{.Name}}"}
				if format != "" {
					o["syslog-format"] = format
				}
				var input string
				switch scheme {
				case "udp":
					input = fmt.Sprintf(`module(load="imudp") input(type="imudp" address="%s" port="%s")`, host, port)
				case "tcp":
					input = fmt.Sprintf(`module(load="imtcp") input(type="imtcp" address="%s" port="%s")`, host, port)
				case "tcp+tls":
					o["syslog-tls-ca-cert"] = ca
					input = fmt.Sprintf(`module(load="imtcp" streamdriver.name="ossl" streamdriver.mode="1" streamdriver.authmode="anon")
						input(type="imtcp" address="%s" port="%s")`, host, port)
				case "unixgram":
					socket := filepath.Join(dir, "log")
					o["syslog-address"] = "unixgram://" + socket
					input = fmt.Sprintf(`module(load="imuxsock" sysSock.use="off") input(type="imuxsock" socket="%s" useSpecialParser="off" parseHostname="%s")`,
						socket, map[bool]string{true: "on", false: "off"}[format != ""])
				}
				config := fmt.Sprintf(`global(workDirectory="%[1]s" maxMessageSize="64k" parser.escapeControlCharactersOnReceive="off"
						defaultNetstreamDriverCAFile="%[2]s" defaultNetstreamDriverCertFile="%[3]s" defaultNetstreamDriverKeyFile="%[4]s")
					%[5]s
					template(name="t" type="string" string="%%syslogfacility-text%%.%%syslogseverity-text%% %%programname%% %%msg:::drop-last-lf%%\n")
					action(type="omfile" file="%[1]s/out" template="t")
					`, dir, ca, cert, key, input)
				conf := filepath.Join(dir, "conf")
				if err := os.WriteFile(conf, []byte(config), 0o600); err != nil {
					t.Fatal(err)
				}
				server(t, env, path, "-n", "-f", conf, "-i", filepath.Join(dir, "pid"), "-M", modules[0])
				if scheme == "udp" {
					awaitUDP(t, port)
				}
				sendSample(t, "syslog", o)
				awaitLines(t, filepath.Join(dir, "out"), func(r Record) string {
					if strings.HasPrefix(format, "rfc5424") {
						return priority(r) + " web "
					}
					return priority(r) + " web  " // msg begins with the space after the tag
				})
			})
		}
	}
}

func TestSyslogNG(t *testing.T) {
	root, path, env := logserver(t, "syslog-ng")
	for _, way := range []string{"rfc3164 udp network(transport(udp)", "rfc3164 tcp network(transport(tcp)", "rfc5424 udp network(transport(udp) flags(syslog-protocol)",
		"rfc5424 tcp network(transport(tcp) flags(syslog-protocol)", "rfc5424 tcp+tls syslog(transport(tls)", "rfc3164 tcp+tls network(transport(tls)",
		"rfc3164 unix unix-stream(", "rfc3164 unixgram unix-dgram("} {
		format, rest, _ := strings.Cut(way, " ")
		scheme, source, _ := strings.Cut(rest, " ")
		t.Run(format+scheme, func(t *testing.T) {
			dir := t.TempDir()
			address, host, port := freeAddress(t)
			ca, cert, key := certificates(t, dir)
			o := driver.Options{"syslog-address": scheme + "://" + address, "syslog-facility": "local3", "syslog-format": format, "tag": "{{.Name}}"}
			if strings.HasPrefix(scheme, "unix") {
				socket := filepath.Join(dir, "log")
				o["syslog-address"] = scheme + "://" + socket
				source = strings.Replace(source, "(", fmt.Sprintf("(%q", socket), 1) + " flags(expect-hostname)"
			} else {
				source += fmt.Sprintf(" ip(%q) port(%s)", host, port)
			}
			if scheme == "tcp+tls" {
				o["syslog-tls-ca-cert"] = ca
				source += fmt.Sprintf(" tls(cert-file(%q) key-file(%q) peer-verify(optional-untrusted))", cert, key)
			}
			config := fmt.Sprintf("@version: 3.35\noptions { log-msg-size(65536); keep-hostname(yes); };\nsource s { %s); };\n"+
				"destination d { file(\"%s/out\" template(\"$FACILITY.$LEVEL $PROGRAM $MSG\\n\")); };\nlog { source(s); destination(d); };\n", source, dir)
			conf := filepath.Join(dir, "conf")
			if err := os.WriteFile(conf, []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			server(t, env, path, "-F", "--no-caps", "-f", conf, "-R", filepath.Join(dir, "persist"), "-p", filepath.Join(dir, "pid"),
				"-c", filepath.Join(dir, "ctl"), "--module-path", filepath.Join(root, "usr/lib/syslog-ng/3.38"))
			if scheme == "udp" {
				awaitUDP(t, port)
			}
			sendSample(t, "syslog", o)
			awaitLines(t, filepath.Join(dir, "out"), func(r Record) string { return priority(r) + " web " })
		})
	}
}

// TestJournald starts journald in a mount namespace of its own, sends from there,
// and reads back with journalctl. The half inside is TestJournaldInside.
func TestJournald(t *testing.T) {
	const journald = "/lib/systemd/systemd-journald"
	if _, err := os.Stat(journald); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd-journald")
	}
	for _, tool := range []string{"journalctl", "unshare"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	script := `set -e
mount -t tmpfs tmpfs /run
mount -t proc proc /proc
mkdir -p /run/systemd/journal /run/log/journal
` + journald + ` >&2 &
for i in $(seq 1200); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
"$0" -test.run '^TestJournaldInside$' >&2
for i in $(seq 600); do
	sleep 0.1
	journalctl --sync >/dev/null 2>&1 || true
	journalctl -D /run/log/journal -o json --all --no-pager CONTAINER_NAME=web >/run/out 2>/dev/null || true
	[ $(wc -l </run/out) -ge 8 ] && break
done
cat /run/out
kill %1 || true
`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, os.Args[0])
	cmd.Env = append(os.Environ(), "LOGS_TEST_JOURNALD=1")
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, errors.String())
	}
	want := journaldSample()
	n := 0
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 8<<20)
	for ; lines.Scan(); n++ {
		var e map[string]any
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		if n >= len(want) {
			t.Fatalf("got more than %d entries", len(want))
		}
		if got := journalText(e["MESSAGE"]); got != string(want[n].Line) {
			t.Errorf("entry %d: got %.80q, want %.80q", n, got, want[n].Line)
		}
		level := map[Stream]string{Stdout: "6", Stderr: "3"}[want[n].Stream]
		for key, value := range map[string]string{"PRIORITY": level, "CONTAINER_TAG": "web-tag", "SYSLOG_IDENTIFIER": "web-tag", "IMAGE_NAME": "shop:1.2",
			"CONTAINER_ID": "abababababab", "APP": "shop", "CONTAINER_LOG_ORDINAL": fmt.Sprint(n + 1),
			"SYSLOG_TIMESTAMP": want[n].Time.Format(time.RFC3339Nano)} {
			if e[key] != value {
				t.Errorf("entry %d: %s is %v, want %s", n, key, e[key], value)
			}
		}
	}
	if n != len(want) {
		t.Errorf("got %d entries, want %d\n%s", n, len(want), errors.String())
	}
}

// journalText returns a field of journalctl -o json: text, or an array of bytes.
func journalText(v any) string {
	array, ok := v.([]any)
	if !ok {
		return fmt.Sprint(v)
	}
	var b []byte
	for _, c := range array {
		b = append(b, byte(c.(float64)))
	}
	return string(b)
}

// journaldSample has also what only journald takes: any bytes, and lines that do
// not fit into a datagram.
func journaldSample() []Record {
	last := sample()[0]
	binary, huge := last, last
	binary.Line, huge.Line = []byte("bytes \xff\x00 end"), bytes.Repeat([]byte("0123456789"), 60_000)
	return append(sample(), binary, huge)
}

func TestJournaldInside(t *testing.T) {
	if os.Getenv("LOGS_TEST_JOURNALD") == "" {
		t.Skip("runs inside TestJournald")
	}
	s, err := kinds()["journald"]().Open(realInfo(), driver.Options{"tag": "{{.Name}}-tag", "labels": "app"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Send(t.Context(), journaldSample()); err != nil {
		t.Fatal(err)
	}
}

// understood is what the collector prints of a record.
type understood struct {
	Time                 int64
	Body                 any
	Attributes, Resource map[string]any
}

// collector starts receivers of the OpenTelemetry Collector.
func collector(t *testing.T, args ...string) *bufio.Scanner {
	t.Helper()
	path := os.Getenv("DHOW_COLLECTOR")
	if path == "" {
		t.Skip("DHOW_COLLECTOR is not set: scripts/collector FILE builds it")
	}
	cmd := exec.Command(path, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	if !lines.Scan() || lines.Text() != `"ready"` {
		t.Fatalf("the collector says %q", lines.Text())
	}
	return lines
}

func TestCollector(t *testing.T) {
	for _, c := range []struct {
		receiver, driver string
		options          func(address string) driver.Options
		body             func(u understood) any // the line, as this protocol has it
		attributes       map[string]any         // some that have to be there
		resource         map[string]any
		exact            bool // times to the nanosecond
	}{
		{"otlp-grpc", "otlp", func(a string) driver.Options {
			return driver.Options{"otlp-endpoint": "http://" + a, "otlp-protocol": "grpc", "labels": "app"}
		}, nil, map[string]any{"log.iostream": "stdout"}, map[string]any{"container.name": "web", "container.image.name": "shop", "container.label.app": "shop"}, true},
		{"otlp-http", "otlp", func(a string) driver.Options {
			return driver.Options{"otlp-endpoint": "http://" + a, "otlp-resource-attributes": "service.name=a%20b"}
		}, nil, map[string]any{"log.iostream": "stdout"}, map[string]any{"container.id": strings.Repeat("ab", 32), "service.name": "a b"}, true},
		{"otlp-http", "otlp", func(a string) driver.Options {
			return driver.Options{"otlp-endpoint": "http://" + a, "otlp-protocol": "http/json", "otlp-compression": "none"}
		}, nil, map[string]any{"log.iostream": "stdout"}, map[string]any{"service.name": "web"}, true},
		{"fluentforward", "fluentd", func(a string) driver.Options {
			return driver.Options{"fluentd-address": a, "fluentd-request-ack": "true", "fluentd-sub-second-precision": "true", "env": "VER"}
		}, nil, map[string]any{"source": "stdout", "container_name": "/web", "VER": "3", "fluent.tag": "abababababab"}, nil, true},
		{"fluentforward", "fluentd", func(a string) driver.Options {
			return driver.Options{"fluentd-address": "tcp://" + a, "tag": "x.{{.Name}}"}
		}, nil, map[string]any{"fluent.tag": "x.web", "container_id": strings.Repeat("ab", 32)}, nil, false},
		{"syslog-rfc5424", "syslog", func(a string) driver.Options {
			return driver.Options{"syslog-address": "tcp://" + a, "syslog-format": "rfc5424micro", "tag": "{{.Name}}"}
		}, func(u understood) any { return u.Attributes["message"] }, map[string]any{"appname": "web", "priority": float64(30)}, nil, true},
	} {
		t.Run(c.driver+c.receiver, func(t *testing.T) {
			address, _, _ := freeAddress(t)
			lines := collector(t, c.receiver, address)
			sendSample(t, c.driver, c.options(address))
			for i, want := range sample() {
				var got understood
				if !lines.Scan() {
					t.Fatal("the collector ended")
				}
				if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				text := got.Body
				if c.body != nil {
					text = c.body(got)
				}
				if text != string(want.Line) {
					t.Errorf("line %d: got %.100v, want %.100q", i, text, want.Line)
				}
				if at := want.Time.UnixNano(); c.exact && got.Time != at || got.Time/1e9 != at/1e9 {
					t.Errorf("line %d: got the time %d, want %d", i, got.Time, at)
				}
				if i > 0 {
					continue
				}
				for k, v := range c.attributes {
					if got.Attributes[k] != v {
						t.Errorf("attribute %s: got %v, want %v, of %v", k, got.Attributes[k], v, got.Attributes)
					}
				}
				for k, v := range c.resource {
					if got.Resource[k] != v {
						t.Errorf("resource attribute %s: got %v, want %v", k, got.Resource[k], v)
					}
				}
			}
		})
	}
}
