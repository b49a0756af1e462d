package bkapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"time"

	"dhow/internal/engine"
	"dhow/internal/errdef"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Media types of what a record refers to, BuildKit's.
const (
	mediaStatus    = "application/vnd.buildkit.status.v0"
	mediaStatement = "application/vnd.in-toto+json"
	mediaTrace     = "application/vnd.buildkit.otlp.json.v0"
	mediaError     = "application/vnd.googeapis.google.rpc.status+proto" // their spelling
)

// newRecord is a build's record when it begins.
func newRecord(req *controlapi.SolveRequest) *controlapi.BuildHistoryRecord {
	r := &controlapi.BuildHistoryRecord{Ref: req.Ref, Frontend: req.Frontend, FrontendAttrs: maps.Clone(req.FrontendAttrs), CreatedAt: timestamppb.Now()}
	for _, x := range requestExporters(req) {
		r.Exporters = append(r.Exporters, &controlapi.Exporter{Type: x.Type, Attrs: x.Attrs})
	}
	return r
}

// keeper collects what a record refers to.
type keeper struct{ blobs [][]byte }

func (k *keeper) add(mediaType string, data []byte) *controlapi.Descriptor {
	k.blobs = append(k.blobs, data)
	return &controlapi.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data).String(), Size: int64(len(data))}
}

// keep completes the record of a build and what goes with it.
func (b *build) keep(res *engine.BuildResult, failure error) *engine.Keepsake {
	k := &keeper{}
	r := b.record.CloneVT()
	r.CompletedAt = timestamppb.Now()
	r.ExporterResponse = response(res)
	all, cached, ran := engine.Count(res.Steps)
	r.NumTotalSteps, r.NumCachedSteps, r.NumCompletedSteps = int32(all), int32(cached), int32(cached+ran)
	b.journal.close()
	raw, warnings := b.journal.encode()
	r.NumWarnings = int32(warnings)
	r.Logs = k.add(mediaStatus, raw)
	r.Trace = k.add(mediaTrace, trace(b.ref, res))
	r.Result = &controlapi.BuildResultInfo{}
	for platform, raw := range res.Provenance {
		d := k.add(mediaStatement, raw)
		d.Annotations = map[string]string{"in-toto.io/predicate-type": "https://slsa.dev/provenance/v1"}
		if !res.Multi {
			r.Result.Attestations = append(r.Result.Attestations, d)
			continue
		}
		if r.Results == nil {
			r.Results = map[string]*controlapi.BuildResultInfo{}
		}
		r.Results[platform] = &controlapi.BuildResultInfo{Attestations: []*controlapi.Descriptor{d}}
	}
	for i, x := range res.Exports {
		if x.Descriptor == nil {
			continue
		}
		d := &controlapi.Descriptor{MediaType: x.Descriptor.MediaType, Digest: x.Descriptor.Digest.String(), Size: x.Descriptor.Size, Annotations: x.Descriptor.Annotations}
		if r.Result.Results == nil {
			r.Result.ResultDeprecated, r.Result.Results = d, map[int64]*controlapi.Descriptor{}
		}
		r.Result.Results[int64(i)] = d
	}
	if failure != nil {
		st, ok := grpcerrors.AsGRPCStatus(grpcerrors.ToGRPC(context.Background(), wire("/Solve", failure)))
		if !ok {
			st = status.New(codes.Unknown, failure.Error())
		}
		p := st.Proto()
		if raw, err := proto.Marshal(p); err == nil {
			r.ExternalError = k.add(mediaError, raw)
		}
		p.Details = nil
		r.Error = p
	}
	raw, err := r.MarshalVT()
	if err != nil {
		return nil // a record that cannot be encoded is none: the engine's own is left
	}
	b.finished = r
	return &engine.Keepsake{Record: raw, Blobs: k.blobs}
}

// encode writes the events as records keep them: each a message of Status after
// its length, four bytes with the lowest first.
func (j *journal) encode() (raw []byte, warnings int) {
	j.mu.Lock()
	events := j.events
	j.mu.Unlock()
	for _, e := range events {
		warnings += len(e.Warnings)
		for _, m := range e.Marshal() {
			if part, err := m.MarshalVT(); err == nil {
				raw = append(binary.LittleEndian.AppendUint32(raw, uint32(len(part))), part...)
			}
		}
	}
	return raw, warnings
}

// replay sends the events of a build that ended some time ago.
func (s *Server) replay(ref string, send func(*controlapi.StatusResponse) error) error {
	r, err := s.recordOf(ref)
	if err != nil {
		return err
	}
	if r.GetLogs() == nil {
		return noJob(ref)
	}
	k, err := s.engine.FindKept(digest.Digest(r.Logs.Digest))
	if err != nil {
		return err
	}
	f, err := k.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	for in := bytes.NewReader(raw); in.Len() > 0; {
		var n uint32
		if err := binary.Read(in, binary.LittleEndian, &n); err != nil || int64(n) > int64(in.Len()) {
			return errdef.New(errdef.ErrIntegrity, "read the events of build %s: they end too early", ref)
		}
		part := make([]byte, n)
		_, _ = in.Read(part) // n bytes are there
		m := &controlapi.StatusResponse{}
		if err := m.UnmarshalVT(part); err != nil {
			return errdef.New(errdef.ErrIntegrity, "read the events of build %s: %w", ref, err)
		}
		if err := send(m); err != nil {
			return err
		}
	}
	return nil
}

// span is one piece of work in the form that OpenTelemetry's Go library gives
// JSON (sdk/trace/tracetest.SpanStub), which buildx reads.
type span struct {
	Name        string
	SpanContext spanContext
	Parent      spanContext
	SpanKind    int
	StartTime   time.Time
	EndTime     time.Time
	Attributes  []spanAttribute
	Status      spanStatus
	Resource    []spanAttribute
}

type spanContext struct {
	TraceID, SpanID, TraceFlags, TraceState string
	Remote                                  bool
}

type spanAttribute struct {
	Key   string
	Value struct{ Type, Value string }
}

type spanStatus struct{ Code, Description string }

func attribute(key, value string) spanAttribute {
	a := spanAttribute{Key: key}
	a.Value.Type, a.Value.Value = "STRING", value
	return a
}

// trace tells what took how long: the build, and below it its steps.
func trace(ref string, res *engine.BuildResult) []byte {
	id := digest.FromString("trace " + ref).Encoded()[:32]
	top := spanContext{TraceID: id, SpanID: digest.FromString("build " + ref).Encoded()[:16], TraceFlags: "01"}
	end := time.Now()
	service := []spanAttribute{attribute("service.name", "dhow")}
	spans := []span{{
		Name: "build", SpanContext: top, SpanKind: 1, StartTime: end.Add(-res.Took), EndTime: end, Resource: service,
		Parent: spanContext{TraceID: "00000000000000000000000000000000", SpanID: "0000000000000000", TraceFlags: "00"},
		Status: spanStatus{Code: "Unset"}, Attributes: []spanAttribute{attribute("ref", ref)},
	}}
	for i, st := range res.Steps {
		s := span{
			Name: st.Name, Parent: top, SpanKind: 1, StartTime: st.Started, EndTime: st.Started.Add(st.Took), Resource: service, Status: spanStatus{Code: "Unset"},
			SpanContext: spanContext{TraceID: id, SpanID: digest.FromString(fmt.Sprint(ref, i)).Encoded()[:16], TraceFlags: "01"},
			Attributes:  []spanAttribute{attribute("vertex", st.Vertex), attribute("state", st.State)},
		}
		if st.State == engine.StateFailed {
			s.Status.Code = "Error"
		}
		spans = append(spans, s)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	for _, s := range spans {
		_ = enc.Encode(s) // a span has nothing that JSON has not
	}
	return out.Bytes()
}

// statusOf adapts a journal to the messages of Status.
func statusOf(send func(*controlapi.StatusResponse) error) func(*client.SolveStatus) error {
	return func(st *client.SolveStatus) error {
		for _, part := range st.Marshal() {
			if err := send(part); err != nil {
				return err
			}
		}
		return nil
	}
}
