package bkapi

import (
	"context"
	"maps"
	"slices"

	"dhow/internal/oci"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// pkg is how dhow names itself where BuildKit has its import path.
const pkg = "dhow"

func (s *Server) version() *apitypes.BuildkitVersion {
	return &apitypes.BuildkitVersion{Package: pkg, Version: s.options.Version, DockerfileVersion: dockerfile.Version()}
}

// workers describes this machine.
func (s *Server) workers() []*apitypes.WorkerRecord {
	labels := map[string]string{
		"org.mobyproject.buildkit.worker.executor":    "dhow",
		"org.mobyproject.buildkit.worker.snapshotter": "overlayfs",
	}
	for k, v := range s.options.Labels {
		labels[k] = v
	}
	return []*apitypes.WorkerRecord{{
		ID: s.worker, Labels: labels, BuildkitVersion: s.version(), CDIDevices: s.devices(), GCPolicy: s.gcPolicy(),
		Platforms: pb.PlatformsFromSpec([]ocispecs.Platform{oci.HostPlatform()}),
	}}
}

// devices are those that builds can ask for. Descriptions that cannot be read
// are told to who asks for a device.
func (s *Server) devices() (list []*apitypes.CDIDevice) {
	d, annotations, err := s.options.Devices.Known()
	if err != nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		list = append(list, &apitypes.CDIDevice{
			Name: name, AutoAllow: d.AutoAllowed(name, s.options.Devices.AutoAllowed), Annotations: annotations[name],
		})
	}
	return list
}

// ListWorkers returns the one worker there is.
func (s *Server) ListWorkers(context.Context, *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	return &controlapi.ListWorkersResponse{Record: s.workers()}, nil
}

// Info tells the version.
func (s *Server) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: s.version()}, nil
}

// Status sends a build's events until it has ended.
func (s *Server) Status(req *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	s.mu.Lock()
	_, known := s.builds[req.Ref]
	s.mu.Unlock()
	if !known {
		if r, err := s.recordOf(req.Ref); err == nil && r != nil {
			return s.replay(req.Ref, stream.Send)
		}
	}
	b, err := s.find(stream.Context(), req.Ref)
	if err != nil {
		return err
	}
	return b.journal.read(stream.Context(), statusOf(stream.Send))
}
