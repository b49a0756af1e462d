// Package awslogs sends lines to Amazon CloudWatch Logs: the actions PutLogEvents,
// CreateLogStream and CreateLogGroup of its API (version 2014-03-28, JSON 1.1,
// https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference), signed
// with Signature Version 4.
//
// Signing and credentials come from the AWS SDK. Its client of the service is not
// used: initialising it costs every command of dhow 0.8 ms and 750 kB, for three
// requests.
//
// Invariant: a batch obeys the limits of PutLogEvents, in the order of time.
package awslogs

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"dhow/internal/logs/driver"
)

// Limits of PutLogEvents.
const (
	mostEvents   = 10_000
	mostBytes    = 1 << 20 // of a batch, with the overhead of each event
	overhead     = 26
	longestEvent = 256<<10 - overhead
	longestSpan  = 24*time.Hour - time.Minute // between the first and the last event
	// A message of several lines is complete when no line has come for this long.
	lineTimeout = 5 * time.Second
)

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: map[string]func(string) error{
			"tag":                                  driver.CheckTag,
			"awslogs-region":                       nil,
			"awslogs-endpoint":                     checkEndpoint,
			"awslogs-group":                        nil,
			"awslogs-stream":                       nil,
			"awslogs-create-group":                 driver.Boolean,
			"awslogs-create-stream":                driver.Boolean,
			"awslogs-datetime-format":              checkDatetime,
			"awslogs-multiline-pattern":            driver.Pattern,
			"awslogs-credentials-endpoint":         nil,
			"awslogs-force-flush-interval-seconds": driver.Number(1, math.MaxInt32),
			"awslogs-max-buffered-events":          driver.Number(1, math.MaxInt32),
			"awslogs-format":                       driver.OneOf("json/emf"),
			"awslogs-entity-service-name":          nil,
			"awslogs-entity-environment":           nil,
			"awslogs-entity-attributes":            checkAttributes,
		},
		Check: check,
		Open:  open,
		Delivery: func(o driver.Options) driver.Delivery {
			return driver.Delivery{
				Records: min(mostEvents, o.Int("awslogs-max-buffered-events", mostEvents)),
				Bytes:   mostBytes / 2,
				Line:    longestEvent,
				Fill:    time.Duration(o.Int("awslogs-force-flush-interval-seconds", 1)) * time.Second,
			}
		},
	}
}

func check(o driver.Options) error {
	switch {
	case o["awslogs-group"] == "":
		return fmt.Errorf("awslogs-group is required")
	case o["awslogs-datetime-format"] != "" && o["awslogs-multiline-pattern"] != "":
		return fmt.Errorf("awslogs-datetime-format and awslogs-multiline-pattern do not go together")
	case o["awslogs-format"] != "" && o["awslogs-datetime-format"]+o["awslogs-multiline-pattern"] != "":
		return fmt.Errorf("awslogs-format goes neither with awslogs-datetime-format nor with awslogs-multiline-pattern")
	case (o["awslogs-entity-service-name"] == "") != (o["awslogs-entity-environment"] == ""),
		o["awslogs-entity-attributes"] != "" && o["awslogs-entity-service-name"] == "":
		return fmt.Errorf("awslogs-entity-service-name and awslogs-entity-environment go together, and awslogs-entity-attributes needs them")
	}
	return nil
}

// datetime turns a format of strftime into a pattern that finds such a time.
func datetime(format string) (*regexp.Regexp, error) {
	sequences := map[byte]string{
		'a': `(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)`,
		'A': `(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day`,
		'w': `[0-6]`,
		'd': `(?:0[1-9]|[12][0-9]|3[01])`,
		'b': `(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)`,
		'B': `(?:January|February|March|April|May|June|July|August|September|October|November|December)`,
		'm': `(?:0[1-9]|1[0-2])`,
		'Y': `\d{4}`,
		'y': `\d{2}`,
		'H': `(?:[01][0-9]|2[0-3])`,
		'I': `(?:0[1-9]|1[0-2])`,
		'p': `[AP]M`,
		'M': `[0-5][0-9]`,
		'S': `[0-5][0-9]`,
		'f': `\d{6}`,
		'L': `\.\d{3}`,
		'z': `[+-]\d{4}`,
		'Z': `[A-Z]{1,4}T`,
		'j': `(?:[0-2][0-9]{2}|3[0-5][0-9]|36[0-6])`,
	}
	var pattern strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			pattern.WriteString(regexp.QuoteMeta(format[i : i+1]))
			continue
		}
		i++
		sequence, ok := sequences[format[i]]
		if !ok {
			return nil, fmt.Errorf("unknown sequence %%%c", format[i])
		}
		pattern.WriteString(sequence)
	}
	return regexp.Compile(pattern.String())
}

func checkDatetime(v string) error {
	_, err := datetime(v)
	return err
}

// attributes reads docker's form of awslogs-entity-attributes: a JSON object of
// strings, or key=value,….
func attributes(v string) (map[string]string, error) {
	all := map[string]string{}
	if v == "" {
		return all, nil
	}
	if strings.HasPrefix(v, "{") {
		err := json.Unmarshal([]byte(v), &all)
		return all, err
	}
	for pair := range strings.SplitSeq(v, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("want key=value,… or a JSON object")
		}
		all[key] = value
	}
	return all, nil
}

func checkAttributes(v string) error {
	_, err := attributes(v)
	return err
}

type sender struct {
	api          *client
	group        string
	stream       string
	createGroup  bool
	createStream bool
	ready        bool // the stream exists
	start        *regexp.Regexp
	finishing    bool
	most         int // records in a batch
	entity       *entity
	now          func() time.Time
	held         driver.Record // the last line that was held back
	heldAt       time.Time
}

// entity says what the lines belong to, for CloudWatch's view of applications.
type entity struct {
	KeyAttributes map[string]string `json:"keyAttributes"`
	Attributes    map[string]string `json:"attributes,omitempty"`
}

// event is one entry of PutLogEvents.
type event struct {
	Timestamp int64  `json:"timestamp"` // ms
	Message   string `json:"message"`
	records   int
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	s := &sender{
		group:        o["awslogs-group"],
		createGroup:  o.Bool("awslogs-create-group"),
		createStream: o["awslogs-create-stream"] == "" || o.Bool("awslogs-create-stream"),
		most:         min(mostEvents, o.Int("awslogs-max-buffered-events", mostEvents)),
		now:          time.Now,
	}
	var err error
	if s.stream = o["awslogs-stream"]; s.stream == "" {
		if s.stream, err = info.Tag(o, "{{.FullID}}"); err != nil {
			return nil, err
		}
	}
	switch {
	case o["awslogs-datetime-format"] != "":
		s.start, err = datetime(o["awslogs-datetime-format"])
	case o["awslogs-multiline-pattern"] != "":
		s.start, err = regexp.Compile(o["awslogs-multiline-pattern"])
	}
	if err != nil {
		return nil, err
	}
	if name := o["awslogs-entity-service-name"]; name != "" {
		more, err := attributes(o["awslogs-entity-attributes"])
		if err != nil {
			return nil, err
		}
		s.entity = &entity{KeyAttributes: map[string]string{"Type": "Service", "Name": name, "Environment": o["awslogs-entity-environment"]}, Attributes: more}
	}
	s.api, err = newClient(o)
	return s, err
}

// Finish says that no line follows.
func (s *sender) Finish() { s.finishing = true }

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	if !s.ready {
		if err := s.prepare(ctx); err != nil {
			return 0, err
		}
		s.ready = true
	}
	events, hold := s.events(batch)
	sent := 0
	for len(events) > 0 {
		n := fitting(events)
		err := s.put(ctx, events[:n])
		for _, e := range events[:n] {
			sent += e.records
		}
		if err != nil && driver.Some(err) == 0 {
			for _, e := range events[:n] {
				sent -= e.records
			}
			return sent, err
		}
		if events = events[n:]; err != nil && (len(events) > 0 || hold > 0) {
			continue // counted with the batch that is the last one
		} else if err != nil {
			return sent, err
		}
	}
	if hold > 0 {
		return sent, driver.Hold(hold)
	}
	return sent, nil
}

// events makes events of records: one each, or with a start pattern one of all up
// to the next start. hold says that the last event is not there, because its next
// lines may come within that time.
func (s *sender) events(batch []driver.Record) (events []event, hold time.Duration) {
	for i := range batch {
		r := &batch[i]
		text := string(r.Line)
		last := len(events) - 1
		if s.start != nil && last >= 0 && !s.start.Match(r.Line) && len(events[last].Message)+len(text)+1 <= longestEvent {
			events[last].Message += "\n" + text
			events[last].records++
			continue
		}
		events = append(events, event{Timestamp: r.Time.UnixMilli(), Message: text, records: 1})
	}
	if s.start == nil || s.finishing || len(batch) >= s.most && len(events) == 1 {
		return events, 0
	}
	if hold := s.holdFor(batch[len(batch)-1]); hold > 0 {
		return events[:len(events)-1], hold
	}
	return events, 0
}

// holdFor returns how much longer the next lines of an event may come, whose last one
// is this. Its time alone would not do: after the clock was put back it is yet to come.
func (s *sender) holdFor(last driver.Record) time.Duration {
	now := s.now()
	if last.Seq != s.held.Seq || !last.Time.Equal(s.held.Time) {
		s.held, s.heldAt = driver.Record{Seq: last.Seq, Time: last.Time}, now
	}
	return lineTimeout - max(now.Sub(last.Time), now.Sub(s.heldAt))
}

// fitting returns how many events, from the first, one request takes.
func fitting(events []event) int {
	bytes, first, last := 0, events[0].Timestamp, events[0].Timestamp
	for i, e := range events {
		bytes += len(e.Message) + overhead
		first, last = min(first, e.Timestamp), max(last, e.Timestamp)
		span := time.Duration(last-first) * time.Millisecond
		if i > 0 && (bytes > mostBytes || i >= mostEvents || span > longestSpan) {
			return i
		}
	}
	return len(events)
}

// prepare creates the stream, and the group if that is wanted.
func (s *sender) prepare(ctx context.Context) error {
	if !s.createStream {
		return nil
	}
	stream := map[string]string{"logGroupName": s.group, "logStreamName": s.stream}
	err := s.api.call(ctx, "CreateLogStream", stream, nil)
	if isFault(err, "ResourceNotFoundException") && s.createGroup {
		err = s.api.call(ctx, "CreateLogGroup", map[string]string{"logGroupName": s.group}, nil)
		if err == nil || isFault(err, "ResourceAlreadyExistsException") {
			err = s.api.call(ctx, "CreateLogStream", stream, nil)
		}
	}
	if isFault(err, "ResourceAlreadyExistsException") {
		return nil
	}
	return err
}

// put sends one request.
func (s *sender) put(ctx context.Context, events []event) error {
	sorted := slices.Clone(events)
	slices.SortStableFunc(sorted, func(a, b event) int { return int(a.Timestamp - b.Timestamp) })
	kept := sorted[:0]
	for _, e := range sorted {
		if e.Message != "" { // the API does not take empty ones
			kept = append(kept, e)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	req := struct {
		Group  string  `json:"logGroupName"`
		Stream string  `json:"logStreamName"`
		Events []event `json:"logEvents"`
		Entity *entity `json:"entity,omitempty"`
	}{s.group, s.stream, kept, s.entity}
	var resp struct {
		Rejected *struct {
			TooNew  *int `json:"tooNewLogEventStartIndex"`
			TooOld  *int `json:"tooOldLogEventEndIndex"`
			Expired *int `json:"expiredLogEventEndIndex"`
		} `json:"rejectedLogEventsInfo"`
	}
	err := s.api.call(ctx, "PutLogEvents", req, &resp)
	switch {
	case isFault(err, "DataAlreadyAcceptedException"):
		return nil
	case isFault(err, "ResourceNotFoundException") && s.createStream:
		s.ready = false // somebody removed it
		return fmt.Errorf("the log stream is gone: %s", err)
	case err != nil || resp.Rejected == nil:
		return err
	}
	rejected := 0
	if from := resp.Rejected.TooNew; from != nil {
		rejected += len(kept) - *from
	}
	old := 0
	for _, end := range []*int{resp.Rejected.TooOld, resp.Rejected.Expired} {
		if end != nil {
			old = max(old, *end)
		}
	}
	if rejected += old; rejected == 0 {
		return nil
	}
	return driver.RejectSome(fmt.Errorf("%d events are too old (14 days) or too new (2 hours) for CloudWatch", rejected), rejected)
}

func (s *sender) Close() error { return s.api.Close() }
