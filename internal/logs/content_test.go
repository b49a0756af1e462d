package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/logs/driver"
	"dhow/internal/testkit"
)

// gelfDecoder puts UDP messages together by the words of the GELF specification,
// independently of the driver.
type gelfDecoder struct {
	chunks map[string][][]byte
}

func (d *gelfDecoder) add(datagram []byte) (map[string]any, error) {
	if bytes.HasPrefix(datagram, []byte{0x1e, 0x0f}) {
		id, seq, count := string(datagram[2:10]), int(datagram[10]), int(datagram[11])
		if count > 128 || seq >= count {
			return nil, fmt.Errorf("chunk %d of %d", seq, count)
		}
		if d.chunks[id] == nil {
			d.chunks[id] = make([][]byte, count)
		}
		d.chunks[id][seq] = bytes.Clone(datagram[12:])
		for _, c := range d.chunks[id] {
			if c == nil {
				return nil, nil
			}
		}
		datagram = bytes.Join(d.chunks[id], nil)
		delete(d.chunks, id)
	}
	var in io.Reader = bytes.NewReader(datagram)
	var err error
	switch {
	case bytes.HasPrefix(datagram, []byte{0x1f, 0x8b}):
		in, err = gzip.NewReader(in)
	case datagram[0] == 0x78:
		in, err = zlib.NewReader(in)
	}
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, json.NewDecoder(in).Decode(&m)
}

// gelfSample needs several chunks, even compressed.
func gelfSample() []Record {
	all := sample()
	noise := make([]byte, 12_000)
	for i := range noise {
		noise[i] = 'a' + byte((i*i*7+i/3)%26)
	}
	all[3].Line = noise
	return all
}

func checkGELF(t *testing.T, m map[string]any, r Record) {
	t.Helper()
	level := map[Stream]float64{Stdout: 6, Stderr: 3}[r.Stream]
	for k, v := range map[string]any{"version": "1.1", "short_message": string(r.Line), "level": level, "_container_name": "web", "_tag": "abababababab",
		"_image_name": "shop:1.2", "_app": "shop", "timestamp": float64(r.Time.UnixMilli()) / 1000} {
		if m[k] != v {
			t.Errorf("%s: got %.80v, want %.80v", k, m[k], v)
		}
	}
}

func TestGELF(t *testing.T) {
	for _, kind := range []string{"gzip", "zlib", "none"} {
		t.Run(kind, func(t *testing.T) {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			o := driver.Options{"gelf-address": "udp://" + c.LocalAddr().String(), "gelf-compression-type": kind, "labels": "app"}
			s, err := kinds()["gelf"]().Open(realInfo(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Send(t.Context(), gelfSample()); err != nil {
				t.Fatal(err)
			}
			d := gelfDecoder{map[string][][]byte{}}
			buf := make([]byte, 65536)
			for _, want := range gelfSample() {
				var m map[string]any
				for m == nil {
					c.SetReadDeadline(time.Now().Add(testkit.Patience))
					n, _, err := c.ReadFrom(buf)
					if err != nil {
						t.Fatal(err)
					}
					if n > 1420 {
						t.Errorf("a datagram of %d bytes", n)
					}
					if m, err = d.add(buf[:n]); err != nil {
						t.Fatal(err)
					}
				}
				checkGELF(t, m, want)
			}
		})
	}
	t.Run("tcp", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		messages := make(chan []byte, 10)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in := bufio.NewReader(c)
			for {
				m, err := in.ReadBytes(0)
				if err != nil {
					return
				}
				messages <- bytes.TrimSuffix(m, []byte{0})
			}
		}()
		s, err := kinds()["gelf"]().Open(realInfo(), driver.Options{"gelf-address": "tcp://" + l.Addr().String(), "labels": "app"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Send(t.Context(), gelfSample()); err != nil {
			t.Fatal(err)
		}
		for _, want := range gelfSample() {
			var m map[string]any
			if err := json.Unmarshal(<-messages, &m); err != nil {
				t.Fatal(err)
			}
			checkGELF(t, m, want)
		}
	})
}

// recorder is a web server that keeps what it is sent.
type recorder struct {
	mu     sync.Mutex
	header http.Header
	paths  []string
	bodies [][]byte
	answer func(path string, n int) string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var in io.Reader = req.Body
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(in)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		in = z
	}
	body, _ := io.ReadAll(in)
	r.header = req.Header
	r.paths, r.bodies = append(r.paths, req.Method+" "+req.URL.Path), append(r.bodies, body)
	if r.answer != nil {
		io.WriteString(w, r.answer(req.URL.Path, len(r.paths)))
	}
}

func record(t *testing.T) (*recorder, string) {
	r := &recorder{}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return r, srv.URL
}

func TestSplunk(t *testing.T) {
	for _, c := range []struct {
		options driver.Options
		want    string // of the first event
	}{
		{driver.Options{}, `{"line":"plain","source":"stdout","tag":"abababababab"}`},
		{driver.Options{"tag": "", "labels": "app", "splunk-gzip": "true"}, `{"line":"plain","source":"stdout","attrs":{"app":"shop"}}`},
		{driver.Options{"splunk-format": "raw", "labels": "app"}, `"abababababab app=shop plain"`},
	} {
		r, url := record(t)
		o := c.options
		o["splunk-url"], o["splunk-token"], o["splunk-index"] = url, "secret", "main"
		sendSample(t, "splunk", o)
		events := json.NewDecoder(bytes.NewReader(r.bodies[0]))
		n := 0
		for ; ; n++ {
			var e struct {
				Event       json.RawMessage
				Time, Index string
			}
			if err := events.Decode(&e); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if n == 0 && (string(e.Event) != c.want || e.Time != "1770091506.789000" || e.Index != "main") {
				t.Errorf("got %s at %s, want %s", e.Event, e.Time, c.want)
			}
		}
		if n != len(sample()) || r.header.Get("Authorization") != "Splunk secret" {
			t.Errorf("got %d events, authorization %q", n, r.header.Get("Authorization"))
		}
	}
}

// TestSplunkAcknowledgement waits for what the indexer says, and needs a channel.
func TestSplunkAcknowledgement(t *testing.T) {
	r, url := record(t)
	asked := 0
	r.answer = func(path string, _ int) string {
		if strings.HasSuffix(path, "/ack") {
			asked++
			return fmt.Sprintf(`{"acks":{"7":%v}}`, asked > 2)
		}
		return `{"text":"Success","code":0,"ackId":7}`
	}
	o := driver.Options{"splunk-url": url, "splunk-token": "t", "splunk-index-acknowledgment": "true"}
	sendSample(t, "splunk", o)
	if asked != 3 || len(r.header.Get("X-Splunk-Request-Channel")) != 36 {
		t.Errorf("asked %d times, channel %q", asked, r.header.Get("X-Splunk-Request-Channel"))
	}
	r.answer = func(string, int) string { return `{"text":"Success","code":0}` }
	s, err := kinds()["splunk"]().Open(realInfo(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(t.Context(), sample()); !driver.IsRefused(err) {
		t.Errorf("got %v, want to be refused by a server without acknowledgements", err)
	}
}

func TestLoki(t *testing.T) {
	r, url := record(t)
	sendSample(t, "loki", driver.Options{"loki-url": url, "loki-tenant-id": "me", "labels": "app", "loki-structured-metadata": "true",
		"loki-external-labels": "job=dhow,name={{.Name}}"})
	var got struct {
		Streams []struct {
			Stream map[string]string
			Values [][]any
		}
	}
	if err := json.Unmarshal(r.bodies[0], &got); err != nil {
		t.Fatal(err)
	}
	if r.paths[0] != "POST /loki/api/v1/push" || r.header.Get("X-Scope-OrgID") != "me" || len(got.Streams) != 2 {
		t.Fatalf("got %v, %v, %+v", r.paths, r.header, got)
	}
	for i, source := range []string{"stdout", "stderr"} {
		s := got.Streams[i]
		if s.Stream["source"] != source || s.Stream["job"] != "dhow" || s.Stream["name"] != "web" || s.Stream["app"] != "shop" || len(s.Values) != 3 {
			t.Errorf("got %+v", s)
		}
		for j, v := range s.Values {
			want := sample()[2*j+i]
			if v[0] != fmt.Sprint(want.Time.UnixNano()) || v[1] != string(want.Line) || v[2].(map[string]any)["container_id"] != realInfo().ContainerID {
				t.Errorf("got %.200v, want %.100q", v, want.Line)
			}
		}
	}
}

func TestGoogle(t *testing.T) {
	r, url := record(t)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", googleCredentials(t))
	sendSample(t, "gcplogs", driver.Options{"gcp-project": "p", "gcp-endpoint": url, "labels": "app", "gcp-meta-zone": "z", "gcp-meta-id": "7", "gcp-log-cmd": "true"})
	var got struct {
		LogName  string
		Resource struct {
			Type   string
			Labels map[string]string
		}
		Entries []struct {
			Timestamp, InsertID string
			JSONPayload         struct {
				Message   string
				Container map[string]any
				Instance  map[string]string
			}
		}
	}
	if err := json.Unmarshal(r.bodies[0], &got); err != nil {
		t.Fatal(err)
	}
	if r.header.Get("Authorization") != "Bearer a-token" || r.paths[0] != "POST /v2/entries:write" {
		t.Errorf("got %v, %v", r.header, r.paths)
	}
	if got.LogName != "projects/p/logs/gcplogs-docker-driver" || got.Resource.Type != "gce_instance" || got.Resource.Labels["zone"] != "z" || len(got.Entries) != len(sample()) {
		t.Fatalf("got %+v", got)
	}
	ids := map[string]bool{}
	for i, e := range got.Entries {
		want := sample()[i]
		ids[e.InsertID] = true
		if e.JSONPayload.Message != string(want.Line) || e.Timestamp != want.Time.Format(time.RFC3339Nano) || e.JSONPayload.Instance["id"] != "7" ||
			fmt.Sprint(e.JSONPayload.Container["metadata"]) != "map[app:shop]" {
			t.Errorf("got %.300v", e)
		}
	}
	if len(ids) != len(got.Entries) {
		t.Errorf("got ids %v", ids)
	}
}
