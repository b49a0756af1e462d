package awslogs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/logs/driver"
)

// cloudWatch is a server that checks what the real one documents: signatures,
// existence, order, limits.
type cloudWatch struct {
	t        *testing.T
	mu       sync.Mutex
	groups   map[string]bool
	streams  map[string][]event // by group/stream
	entity   map[string]any
	answer   string // to PutLogEvents, "" for {}
	throttle int    // so many requests are answered with ThrottlingException
	calls    []string
}

const (
	keyID  = "AKIDEXAMPLE"
	secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

func hmacOf(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	io.WriteString(h, text)
	return h.Sum(nil)
}

// signed checks Signature Version 4 by its description (AWS General Reference,
// "Create a signed AWS API request").
func signed(r *http.Request, body []byte) error {
	auth := r.Header.Get("Authorization")
	rest, ok := strings.CutPrefix(auth, "AWS4-HMAC-SHA256 ")
	if !ok {
		return fmt.Errorf("authorization %q", auth)
	}
	part := map[string]string{}
	for _, p := range strings.Split(rest, ", ") {
		k, v, _ := strings.Cut(p, "=")
		part[k] = v
	}
	scope, ok := strings.CutPrefix(part["Credential"], keyID+"/")
	if !ok {
		return fmt.Errorf("credential %q", part["Credential"])
	}
	at := strings.Split(scope, "/") // date, region, service, aws4_request
	canonical := r.Method + "\n" + r.URL.EscapedPath() + "\n" + r.URL.RawQuery + "\n"
	names := strings.Split(part["SignedHeaders"], ";")
	for _, need := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !slices.Contains(names, need) {
			return fmt.Errorf("header %s is not signed", need)
		}
	}
	for _, name := range names {
		value := r.Header.Get(name)
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(len(body))
		}
		canonical += name + ":" + strings.TrimSpace(value) + "\n"
	}
	sum := sha256.Sum256(body)
	canonical += "\n" + part["SignedHeaders"] + "\n" + hex.EncodeToString(sum[:])
	hash := sha256.Sum256([]byte(canonical))
	text := "AWS4-HMAC-SHA256\n" + r.Header.Get("X-Amz-Date") + "\n" + scope + "\n" + hex.EncodeToString(hash[:])
	key := hmacOf([]byte("AWS4"+secret), at[0])
	for _, next := range at[1:] {
		key = hmacOf(key, next)
	}
	if want := hex.EncodeToString(hmacOf(key, text)); part["Signature"] != want {
		return fmt.Errorf("signature %s, want %s", part["Signature"], want)
	}
	return nil
}

func (c *cloudWatch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	fault := func(kind string) {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"__type":"com.amazonaws.logs#%s","message":"so it is"}`, kind)
	}
	if err := signed(r, body); err != nil {
		c.t.Error(err)
		fault("InvalidSignatureException")
		return
	}
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "Logs_20140328.")
	c.calls = append(c.calls, action)
	var in struct {
		Group  string         `json:"logGroupName"`
		Stream string         `json:"logStreamName"`
		Events []event        `json:"logEvents"`
		Entity map[string]any `json:"entity"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		c.t.Error(err)
	}
	stream := in.Group + "/" + in.Stream
	_, exists := c.streams[stream]
	switch {
	case action == "CreateLogGroup" && c.groups[in.Group], action == "CreateLogStream" && exists:
		fault("ResourceAlreadyExistsException")
	case action == "CreateLogGroup":
		c.groups[in.Group] = true
	case !c.groups[in.Group]:
		fault("ResourceNotFoundException")
	case action == "CreateLogStream":
		c.streams[stream] = []event{}
	case !exists:
		fault("ResourceNotFoundException")
	case c.throttle > 0:
		c.throttle--
		fault("ThrottlingException")
	default:
		if err := c.acceptable(in.Events); err != nil {
			c.t.Error(err)
			fault("InvalidParameterException")
			return
		}
		c.streams[stream] = append(c.streams[stream], in.Events...)
		c.entity = in.Entity
		io.WriteString(w, c.answer)
	}
}

// acceptable checks a batch against the limits of PutLogEvents.
func (c *cloudWatch) acceptable(events []event) error {
	size := 0
	for i, e := range events {
		size += len(e.Message) + 26
		if e.Message == "" || len(e.Message) > 262_118 {
			return fmt.Errorf("event of %d bytes", len(e.Message))
		}
		if i > 0 && e.Timestamp < events[i-1].Timestamp {
			return fmt.Errorf("event %d is older than the one before", i)
		}
	}
	if len(events) == 0 || len(events) > 10_000 || size > 1_048_576 {
		return fmt.Errorf("%d events of %d bytes", len(events), size)
	}
	if span := events[len(events)-1].Timestamp - events[0].Timestamp; span > 24*3600*1000 {
		return fmt.Errorf("a batch of %d ms", span)
	}
	return nil
}

func start(t *testing.T, o driver.Options) (*cloudWatch, *sender) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", keyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	c := &cloudWatch{t: t, groups: map[string]bool{}, streams: map[string][]event{}}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	o["awslogs-endpoint"], o["awslogs-region"], o["awslogs-group"] = srv.URL, "eu-west-1", "g"
	if err := Kind().CheckOptions("awslogs", o); err != nil {
		t.Fatal(err)
	}
	s, err := open(driver.Info{ContainerID: strings.Repeat("ab", 32), ContainerName: "web"}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c, s.(*sender)
}

func records(at time.Time, lines ...string) []driver.Record {
	var all []driver.Record
	for i, l := range lines {
		all = append(all, driver.Record{Time: at.Add(time.Duration(i) * time.Millisecond), Stream: driver.Stdout, Line: []byte(l)})
	}
	return all
}

func TestCreatesGroupAndStream(t *testing.T) {
	c, s := start(t, driver.Options{"awslogs-create-group": "true", "tag": "{{.Name}}",
		"awslogs-entity-service-name": "shop", "awslogs-entity-environment": "prod", "awslogs-entity-attributes": "a=b"})
	if n, err := s.Send(t.Context(), records(time.Now(), "one", "", "two")); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	got := c.streams["g/web"]
	if len(got) != 2 || got[0].Message != "one" || got[1].Message != "two" {
		t.Errorf("got %+v", got)
	}
	if fmt.Sprint(c.entity) != "map[attributes:map[a:b] keyAttributes:map[Environment:prod Name:shop Type:Service]]" {
		t.Errorf("got the entity %v", c.entity)
	}
	if want := []string{"CreateLogStream", "CreateLogGroup", "CreateLogStream", "PutLogEvents"}; !slices.Equal(c.calls, want) {
		t.Errorf("got %v, want %v", c.calls, want)
	}
}

func TestNoGroup(t *testing.T) {
	_, s := start(t, driver.Options{})
	if _, err := s.Send(t.Context(), records(time.Now(), "one")); !driver.IsRefused(err) {
		t.Errorf("got %v, want to be refused", err)
	}
}

func TestLimits(t *testing.T) {
	c, s := start(t, driver.Options{"awslogs-create-group": "true"})
	long := strings.Repeat("x", 200_000)
	now := time.Now()
	batch := records(now, long, long, long, long, long, long, long)
	batch = append(batch, records(now.Add(-30*time.Hour), "late", "r")...) // the clock went back
	batch = append(batch, records(now.Add(-1*time.Hour), "later")...)
	if n, err := s.Send(t.Context(), batch); err != nil || n != len(batch) {
		t.Fatal(n, err)
	}
	if got := c.streams["g/"+strings.Repeat("ab", 32)]; len(got) != len(batch) {
		t.Errorf("got %d events, want %d", len(got), len(batch))
	}
	var many []string
	for i := range 10_001 {
		many = append(many, fmt.Sprint(i))
	}
	if n, err := s.Send(t.Context(), records(now, many...)); err != nil || n != len(many) {
		t.Fatal(n, err)
	}
}

func TestThrottlingAndRejection(t *testing.T) {
	c, s := start(t, driver.Options{"awslogs-create-group": "true"})
	c.throttle = 1
	if n, err := s.Send(t.Context(), records(time.Now(), "one")); n != 0 || err == nil || driver.IsRefused(err) || driver.IsRejected(err) {
		t.Errorf("got %d, %v, want to try again", n, err)
	}
	c.answer = `{"rejectedLogEventsInfo":{"tooOldLogEventEndIndex":2}}`
	if n, err := s.Send(t.Context(), records(time.Now(), "one", "two", "three")); n != 3 || driver.Some(err) != 2 {
		t.Errorf("got %d, %v, want 2 rejected", n, err)
	}
	c.answer = ""
	delete(c.streams, "g/"+strings.Repeat("ab", 32))
	if _, err := s.Send(t.Context(), records(time.Now(), "four")); err == nil || driver.IsRefused(err) {
		t.Errorf("got %v, want to try again", err)
	}
	if _, err := s.Send(t.Context(), records(time.Now(), "four")); err != nil {
		t.Error(err)
	}
}

func TestSeveralLinesOneEvent(t *testing.T) {
	for _, o := range []driver.Options{
		{"awslogs-datetime-format": "%Y-%m-%d %H:%M:%S"},
		{"awslogs-multiline-pattern": `^\d{4}-`},
	} {
		o["awslogs-create-group"] = "true"
		c, s := start(t, o)
		now := time.Now()
		s.now = func() time.Time { return now }
		batch := records(now, "2026-01-02 10:11:12 boom", "  at a", "  at b", "2026-01-02 10:11:13 next", "  at c")
		n, err := s.Send(t.Context(), batch)
		if n != 3 || !driver.IsHeld(err) || driver.After(err) <= 0 {
			t.Fatalf("got %d, %v, want the last message to be held", n, err)
		}
		now = now.Add(time.Minute)
		if n, err := s.Send(t.Context(), batch[3:]); n != 2 || err != nil {
			t.Fatalf("got %d, %v, want the last message to be sent", n, err)
		}
		now = batch[4].Time
		if n, err := s.Send(t.Context(), records(now, "2026-01-02 10:11:14 x")); n != 0 || !driver.IsHeld(err) {
			t.Fatalf("got %d, %v", n, err)
		}
		s.Finish()
		if n, err := s.Send(t.Context(), records(now, "2026-01-02 10:11:14 x")); n != 1 || err != nil {
			t.Fatalf("got %d, %v", n, err)
		}
		got := c.streams["g/"+strings.Repeat("ab", 32)]
		if len(got) != 3 || got[0].Message != "2026-01-02 10:11:12 boom\n  at a\n  at b" || got[1].Message != "2026-01-02 10:11:13 next\n  at c" {
			t.Errorf("got %+v", got)
		}
	}
}

// TestClockPutBack holds back the last event as long as ever.
func TestClockPutBack(t *testing.T) {
	c, s := start(t, driver.Options{"awslogs-create-group": "true", "awslogs-multiline-pattern": `^x`})
	now := time.Now()
	s.now = func() time.Time { return now }
	batch := records(now.Add(5*time.Hour), "x boom", "  at a")
	if n, err := s.Send(t.Context(), batch); n != 0 || !driver.IsHeld(err) || driver.After(err) > lineTimeout {
		t.Fatalf("got %d, %v, after %v; want it held for %v at most", n, err, driver.After(err), lineTimeout)
	}
	now = now.Add(lineTimeout)
	if n, err := s.Send(t.Context(), batch); n != 2 || err != nil {
		t.Fatalf("got %d, %v, want the event to be sent", n, err)
	}
	if got := c.streams["g/"+strings.Repeat("ab", 32)]; len(got) != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestOptions(t *testing.T) {
	for _, bad := range []driver.Options{
		{}, {"awslogs-group": "g", "awslogs-datetime-format": "%Q"},
		{"awslogs-group": "g", "awslogs-datetime-format": "%Y", "awslogs-multiline-pattern": "x"},
		{"awslogs-group": "g", "awslogs-format": "xml"}, {"awslogs-group": "g", "awslogs-entity-environment": "e"},
		{"awslogs-group": "g", "labels": "x"},
	} {
		if err := Kind().CheckOptions("awslogs", bad); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

func TestSharedCredentials(t *testing.T) {
	file := "[default]\naws_access_key_id = A\naws_secret_access_key=B\n# [x]\n[ other ]\naws_access_key_id=C\naws_session_token = D\n"
	if got := profile([]byte(file), "default"); got["aws_access_key_id"] != "A" || got["aws_secret_access_key"] != "B" {
		t.Errorf("got %v", got)
	}
	if got := profile([]byte(file), "other"); got["aws_access_key_id"] != "C" || got["aws_session_token"] != "D" {
		t.Errorf("got %v", got)
	}
}
