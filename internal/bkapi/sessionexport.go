package bkapi

import (
	"context"

	"dhow/internal/engine"
	"dhow/internal/errdef"
	"dhow/internal/frontend"

	controlapi "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session/exporter"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// maxSessionExporters bounds how many exporters a client may ask for when it sees
// the result.
const maxSessionExporters = 100

// addOutputs asks the client, now that there is a result, what else it wants it
// exported to. The client may look into the result through the gateway.
func (s *Server) addOutputs(ctx context.Context, b *build, j *engine.Job, res *gateway.Result, sess *remote, req *controlapi.SolveRequest) error {
	c, err := sess.caller(ctx, "")
	if err != nil {
		return err
	}
	if b.bridge == nil {
		g := frontend.NewBridge(ctx, b.client, s.workers())
		defer g.Close()
		b.bridge = g
		close(b.ready)
	}
	answer, err := exporter.NewExporterClient(c.Conn()).FindExporters(c.Context(ctx), &exporter.FindExportersRequest{Metadata: res.Metadata, Refs: b.bridge.Names(res)})
	if err != nil {
		return unlessAbsent(err)
	}
	if len(answer.Exporters) > maxSessionExporters {
		return errdef.New(errdef.ErrInvalid, "the client asks for %d exporters, at most %d are allowed", len(answer.Exporters), maxSessionExporters)
	}
	for _, x := range answer.Exporters {
		if err := s.addOutput(j, sess, req, x.GetType(), x.GetAttrs()); err != nil {
			return err
		}
	}
	return nil
}

// exported tells the client what the exports came to. Its failure is the build's.
func (r *remote) exported(ctx context.Context, response map[string]string) error {
	c, err := r.caller(ctx, "")
	if err != nil {
		return err
	}
	_, err = exporter.NewExporterClient(c.Conn()).FinalizeExport(c.Context(ctx), &exporter.FinalizeExportRequest{ExporterResponse: response})
	return unlessAbsent(err)
}

// unlessAbsent: a client need not have that part of the service.
func unlessAbsent(err error) error {
	if code := grpcerrors.Code(err); code == codes.Unavailable || code == codes.Unimplemented {
		return nil
	}
	return err
}
