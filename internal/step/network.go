package step

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"dhow/internal/container"
	"dhow/internal/errdef"
	"dhow/internal/network"
	"dhow/internal/network/nameserver"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// connect gives the step its network: the default one in a namespace of its own,
// as docker has it, or none, or the machine's. On a machine where nothing can be
// connected, the default is the machine's, as with BuildKit without CNI.
func (s *step) connect(ctx context.Context) error {
	if s.op.Network != pb.NetMode_UNSET {
		return nil
	}
	id := network.StepID(s.deps.Store.ProcID(), rand.Text()[:12])
	nets := network.New(s.deps.Store, network.Options{Alive: func(id string) bool {
		proc, isStep := network.StepProc(id)
		return !isStep || s.deps.Store.ProcAlive(proc)
	}})
	a, err := nets.Up(ctx, network.Request{Container: id, Name: id, Hostname: s.hostname()})
	if err != nil && ctx.Err() == nil && (errors.Is(err, errdef.ErrUnsupported) || errors.Is(err, errdef.ErrDenied)) {
		s.job.Warn("the step uses the machine's network: %v", err)
		return nil
	}
	if err != nil {
		return err
	}
	s.net = a
	s.onRelease(a.Close)
	return nil
}

// namespaces puts the step's network into the spec.
func (s *step) namespaces(spec *specs.Spec) {
	if s.net == nil {
		return
	}
	spec.Linux.Namespaces = append(slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace }),
		specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/fd/" + strconv.Itoa(int(s.net.Namespace().Fd()))})
}

// networkFiles gives the step /etc/hosts and /etc/resolv.conf, unless it mounts
// something else there.
func (s *step) networkFiles(ctx context.Context) error {
	extra, err := extraHosts(s.op.Meta.ExtraHosts)
	if err != nil {
		return err
	}
	resolv, self, err := s.names(ctx)
	if err != nil {
		return err
	}
	for dest, data := range map[string][]byte{
		"/etc/hosts":       container.Hosts(s.hostname(), "", self, extra),
		"/etc/resolv.conf": resolv,
	} {
		taken := slices.ContainsFunc(s.mounts, func(m stepMount) bool {
			return m.dest == dest || strings.HasPrefix(dest, m.dest+"/")
		})
		if taken {
			continue
		}
		if err := s.give(dest, data, grant{mode: 0o644}); err != nil {
			return err
		}
	}
	return nil
}

// names are the name servers that the step asks, and its own addresses.
func (s *step) names(ctx context.Context) (resolv []byte, self []string, err error) {
	if s.net != nil {
		if resolv, err = s.net.ResolvConf(); err != nil {
			return nil, nil, err
		}
		self, _, err = s.net.Hosts(ctx)
		return resolv, self, err
	}
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the machine's name servers: %w", err)
	}
	mode := container.NetworkHost
	if s.op.Network == pb.NetMode_NONE {
		mode = container.NetworkNone
	}
	return container.ResolvConf(host, mode, nameserver.Conf{}), nil, nil
}
