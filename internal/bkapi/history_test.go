package bkapi

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// events asks for the history and returns what is sent.
func events(t *testing.T, c *client.Client, req *controlapi.BuildHistoryRequest) []*controlapi.BuildHistoryEvent {
	t.Helper()
	req.EarlyExit = true
	stream, err := c.ControlClient().ListenBuildHistory(t.Context(), req)
	must(t, err)
	var out []*controlapi.BuildHistoryEvent
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		out = append(out, e)
	}
}

func TestHistory(t *testing.T) {
	c := serve(t)
	live, err := c.ControlClient().ListenBuildHistory(t.Context(), &controlapi.BuildHistoryRequest{})
	must(t, err)
	_, err = live.Header() // it listens
	must(t, err)
	good, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("body"))).Marshal(t.Context())
	must(t, err)
	bad, err := llb.Scratch().File(llb.Rm("/missing")).Marshal(t.Context())
	must(t, err)
	_, err = c.Solve(t.Context(), good, client.SolveOpt{Ref: "goodbuild1"}, nil)
	must(t, err)
	if _, err = c.Solve(t.Context(), bad, client.SolveOpt{Ref: "badbuild1"}, nil); err == nil {
		t.Fatal("got no error, want that a file is missing")
	}
	for _, want := range []string{"STARTED goodbuild1", "COMPLETE goodbuild1", "STARTED badbuild1", "COMPLETE badbuild1"} {
		e, err := live.Recv()
		must(t, err)
		if got := e.Type.String() + " " + e.Record.Ref; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	failed := events(t, c, &controlapi.BuildHistoryRequest{Filter: []string{"status==error"}})
	if len(failed) != 1 || failed[0].Record.Ref != "badbuild1" {
		t.Fatalf("got %v, want the build that failed", failed)
	}
	r := failed[0].Record
	if r.Trace == nil || r.Logs == nil || r.ExternalError == nil || !strings.Contains(r.Error.Message, "missing") {
		t.Fatalf("got %v, want the error, logs and a trace", r)
	}
	store := proxy.NewContentStore(c.ContentClient())
	raw, err := content.ReadBlob(t.Context(), store, ocispecs.Descriptor{Digest: digest.Digest(r.ExternalError.Digest), Size: r.ExternalError.Size})
	must(t, err)
	var st statuspb.Status
	must(t, proto.Unmarshal(raw, &st))
	if st.Message != r.Error.Message || len(st.Details) == 0 {
		t.Errorf("got %q with %d details, want %q with some", st.Message, len(st.Details), r.Error.Message)
	}
	control := c.ControlClient()
	_, err = control.UpdateBuildHistory(t.Context(), &controlapi.UpdateBuildHistoryRequest{Ref: "goodbuild1", Pinned: true})
	must(t, err)
	if e := events(t, c, &controlapi.BuildHistoryRequest{Ref: "goodbuild1"}); len(e) != 1 || !e[0].Record.Pinned {
		t.Errorf("got %v, want it pinned", e)
	}
	for _, ref := range []string{"goodbuild1", "badbuild1", "unknown1"} {
		_, err = control.UpdateBuildHistory(t.Context(), &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
		must(t, err)
	}
	must(t, store.Walk(t.Context(), func(i content.Info) error { return errors.New(i.Digest.String() + " is left") }))
}

// A build that starts or ends while the history is read is told of once.
func TestToldOnce(t *testing.T) {
	const started, complete, deleted = controlapi.BuildHistoryEventType_STARTED, controlapi.BuildHistoryEventType_COMPLETE, controlapi.BuildHistoryEventType_DELETED
	history := toldBuilds{"running": started, "over": complete}
	for _, e := range []struct {
		kind controlapi.BuildHistoryEventType
		ref  string
		want bool
	}{
		{started, "running", false}, {complete, "running", true},
		{started, "over", false}, {complete, "over", false},
		{started, "new", true}, {complete, "new", true},
		{deleted, "over", true}, {started, "over", true}, {complete, "over", true},
	} {
		if got := history.news(&controlapi.BuildHistoryEvent{Type: e.kind, Record: &controlapi.BuildHistoryRecord{Ref: e.ref}}); got != e.want {
			t.Errorf("%s %s: got %t, want %t", e.kind, e.ref, got, e.want)
		}
	}
}

func TestReplay(t *testing.T) {
	j := newJournal()
	j.add(&client.SolveStatus{Logs: []*client.VertexLog{{Data: []byte("hello")}}, Warnings: []*client.VertexWarning{{Short: []byte("careful")}}})
	raw, warnings := j.encode()
	if len(raw) == 0 || warnings != 1 {
		t.Errorf("got %d bytes, %d warnings", len(raw), warnings)
	}
}

func TestHistoryFilter(t *testing.T) {
	now := time.Unix(10_000, 0)
	r := &controlapi.BuildHistoryRecord{Ref: "r", CreatedAt: timestamppb.New(now.Add(-time.Hour)), CompletedAt: timestamppb.New(now.Add(-time.Hour + 2*time.Second))}
	for text, want := range map[string]bool{
		"": true, "ref==r": true, "ref==x": false, "status==completed": true, "status==error": false, "duration>1s": true, "duration<1s": false,
		"startedAt>=30m": false, "startedAt<30m": true, "ref==r,duration<=2s": true, "ref==r,duration<2s": false, "completedAt<1970-01-01T02:00:00Z": true,
	} {
		match, err := historyFilter([]string{text}, now)
		must(t, err)
		if got := match(r); got != want {
			t.Errorf("%q: got %t, want %t", text, got, want)
		}
	}
	for _, text := range []string{"startedAt>soon", "duration<x", "ref=="} {
		if _, err := historyFilter([]string{text}, now); err == nil {
			t.Errorf("%q: got no error", text)
		}
	}
}
