// Package gcplogs sends lines to Google Cloud Logging: the method entries.write of
// its API (v2, https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/write),
// with Application Default Credentials from golang.org/x/oauth2.
//
// cloud.google.com/go/logging queues and retries on its own, and drops what
// overflows.
//
// Invariant: an entry has an id made of its container and line, so that the service
// keeps what was sent twice once.
package gcplogs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"dhow/internal/logs/driver"
)

const (
	writeURL = "https://logging.googleapis.com"
	scope    = "https://www.googleapis.com/auth/logging.write"
	logID    = "gcplogs-docker-driver" // docker's

	tokenTimeout = 15 * time.Second
)

// Kind describes the driver.
func Kind() driver.Kind {
	return driver.Kind{
		Options: map[string]func(string) error{
			"gcp-project":   nil,
			"gcp-log-cmd":   driver.Boolean,
			"gcp-meta-zone": nil,
			"gcp-meta-name": nil,
			"gcp-meta-id":   nil,
			"gcp-endpoint":  checkEndpoint,
			"labels":        nil,
			"labels-regex":  driver.Pattern,
			"env":           nil,
			"env-regex":     driver.Pattern,
		},
		Open: open,
		Delivery: func(driver.Options) driver.Delivery {
			// An entry may have 256 kB, a request 10 MB.
			return driver.Delivery{Line: 100 << 10, Bytes: 1 << 20, Fill: 200 * time.Millisecond}
		},
	}
}

func checkEndpoint(v string) error {
	u, err := url.Parse(v)
	if err != nil {
		return err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("want https://host")
	}
	return nil
}

// payload is docker's form of an entry.
type payload struct {
	Instance  *instance  `json:"instance,omitempty"`
	Container *container `json:"container,omitempty"`
	Message   string     `json:"message,omitempty"`
}

type instance struct {
	Zone string `json:"zone,omitempty"`
	Name string `json:"name,omitempty"`
	ID   string `json:"id,omitempty"`
}

type container struct {
	Name      string            `json:"name,omitempty"`
	ID        string            `json:"id,omitempty"`
	ImageName string            `json:"imageName,omitempty"`
	ImageID   string            `json:"imageId,omitempty"`
	Created   time.Time         `json:"created"`
	Command   string            `json:"command,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

type resource struct {
	Type   string            `json:"type"`
	Labels map[string]string `json:"labels,omitempty"`
}

type entry struct {
	Timestamp string  `json:"timestamp"`
	InsertID  string  `json:"insertId"`
	Payload   payload `json:"jsonPayload"`
}

type sender struct {
	http      *driver.HTTP
	url       string
	project   string
	resource  resource
	instance  *instance
	container container
	id        string // of entries, with the line's number
	looked    bool   // at the instance's metadata
	tokens    oauth2.TokenSource
}

func open(info driver.Info, o driver.Options) (driver.Sender, error) {
	metadata, err := info.Attributes(o, nil)
	if err != nil {
		return nil, err
	}
	s := &sender{
		http:     driver.NewHTTP(nil, 1),
		url:      strings.TrimSuffix(o.Or("gcp-endpoint", writeURL), "/") + "/v2/entries:write",
		project:  o["gcp-project"],
		resource: resource{Type: "global"},
		id:       info.ID() + "-" + strconv.FormatInt(info.ContainerCreated.UnixNano(), 36),
		container: container{Name: "/" + info.Name(), ID: info.ContainerID, ImageName: info.ContainerImageName,
			ImageID: info.ContainerImageID, Created: info.ContainerCreated, Metadata: metadata},
	}
	if o.Bool("gcp-log-cmd") {
		s.container.Command = info.Command()
	}
	if zone, name, id := o["gcp-meta-zone"], o["gcp-meta-name"], o["gcp-meta-id"]; zone+name+id != "" {
		s.runsOn(&instance{zone, name, id})
	}
	return s, nil
}

// runsOn makes entries belong to an instance.
func (s *sender) runsOn(i *instance) {
	s.instance = i
	s.resource = resource{Type: "gce_instance", Labels: map[string]string{"instance_id": i.ID, "zone": i.Zone}}
}

// look asks the metadata server, on Google's machines, and finds credentials.
func (s *sender) look(ctx context.Context) error {
	if s.looked {
		return nil
	}
	if metadata.OnGCEWithContext(ctx) {
		// None of these is vital: what is not known is left out.
		project, _ := metadata.ProjectIDWithContext(ctx)
		zone, _ := metadata.ZoneWithContext(ctx)
		name, _ := metadata.InstanceNameWithContext(ctx)
		id, _ := metadata.InstanceIDWithContext(ctx)
		if s.project == "" {
			s.project = project
		}
		if s.instance == nil {
			s.runsOn(&instance{zone, name, id})
		}
	}
	if s.project == "" {
		return driver.Refuse(fmt.Errorf("gcp-project is not set, and this is no machine of Google's that tells it"))
	}
	// The credentials outlive this call, so they do not end with its context.
	asking := context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, &http.Client{Timeout: tokenTimeout})
	found, err := google.FindDefaultCredentials(asking, scope)
	if err != nil {
		return driver.Refuse(err)
	}
	s.tokens, s.looked = found.TokenSource, true
	return nil
}

func (s *sender) Send(ctx context.Context, batch []driver.Record) (int, error) {
	if err := s.look(ctx); err != nil {
		return 0, err
	}
	token, err := s.tokens.Token()
	if err != nil {
		return 0, tokenError(err)
	}
	entries := make([]entry, len(batch))
	part := 0
	for i := range batch {
		r := &batch[i]
		if i > 0 && r.Seq == batch[i-1].Seq {
			part++
		} else {
			part = 0
		}
		entries[i] = entry{
			Timestamp: r.Time.Format(time.RFC3339Nano),
			InsertID:  fmt.Sprintf("%s-%d-%d-%d", s.id, r.Seq, r.Stream, part),
			Payload:   payload{Instance: s.instance, Container: &s.container, Message: string(r.Line)},
		}
	}
	body, err := json.Marshal(struct {
		LogName  string   `json:"logName"`
		Resource resource `json:"resource"`
		Entries  []entry  `json:"entries"`
	}{"projects/" + s.project + "/logs/" + logID, s.resource, entries})
	if err != nil {
		return 0, err
	}
	header := http.Header{"Content-Type": {"application/json"}, "Authorization": {token.Type() + " " + token.AccessToken}}
	_, err = s.http.Post(ctx, s.url, header, body)
	return 0, err
}

// tokenError tells a key that is not taken (RFC 6749, section 5.2: a status of 400
// or 401) from an endpoint that is not there, or busy.
func tokenError(err error) error {
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.Response == nil {
		return err
	}
	switch code := refused.Response.StatusCode; {
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code < 400, code >= 500:
		return err
	}
	return driver.Refuse(err)
}

func (s *sender) Close() error { return s.http.Close() }
