package step

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"dhow/internal/errdef"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/system"
)

// environment is what the command gets: the step's own variables, proxies and
// secrets, and PATH and HOME where none of them says otherwise. Later values
// replace earlier ones of the same name.
func (s *step) environment(ctx context.Context, home string) ([]string, error) {
	env := append([]string(nil), s.op.Meta.Env...)
	env = append(env, proxyEnv(s.op.Meta.ProxyEnv)...)
	secrets, err := s.secretEnv(ctx)
	if err != nil {
		return nil, err
	}
	env = append(env, secrets...)
	return withDefaults(lastWins(env), "PATH="+system.DefaultPathEnvUnix, "HOME="+home), nil
}

// secretEnv reads the secrets that the step wants as variables.
func (s *step) secretEnv(ctx context.Context) ([]string, error) {
	var env []string
	for _, se := range s.op.Secretenv {
		if se.ID == "" {
			return nil, errdef.New(errdef.ErrInvalid, "secret ID missing for %q environment variable", se.Name)
		}
		val, err := s.deps.Session.Secret(ctx, se.ID)
		if errors.Is(err, errdef.ErrNotFound) && se.Optional {
			// BuildKit sets the variable to nothing, and so scripts may test it.
			env = append(env, se.Name+"=")
			continue
		}
		if err != nil {
			return nil, err
		}
		if strings.ContainsRune(string(val), 0) {
			return nil, errdef.New(errdef.ErrInvalid, "secret %s: it has a zero byte, which no variable can hold", se.ID)
		}
		s.sawSecret(se.ID, val)
		env = append(env, se.Name+"="+string(val))
	}
	return env, nil
}

func proxyEnv(p *pb.ProxyEnv) []string {
	if p == nil {
		return nil
	}
	var env []string
	for _, v := range []struct{ name, val string }{
		{"HTTP_PROXY", p.HttpProxy}, {"HTTPS_PROXY", p.HttpsProxy}, {"FTP_PROXY", p.FtpProxy},
		{"NO_PROXY", p.NoProxy}, {"ALL_PROXY", p.AllProxy},
	} {
		if v.val != "" {
			env = append(env, v.name+"="+v.val, strings.ToLower(v.name)+"="+v.val)
		}
	}
	return env
}

// lastWins keeps one value a name, where the name came first.
func lastWins(env []string) []string {
	at := map[string]int{}
	out := env[:0]
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

func withDefaults(env []string, defaults ...string) []string {
	for _, d := range defaults {
		name, _, _ := strings.Cut(d, "=")
		found := false
		for _, e := range env {
			found = found || strings.HasPrefix(e, name+"=")
		}
		if !found {
			env = append(env, d)
		}
	}
	return env
}

// extraHosts turns the step's added hosts into "name:ip".
func extraHosts(hosts []*pb.HostIP) ([]string, error) {
	var out []string
	for _, h := range hosts {
		ip, err := netip.ParseAddr(h.IP)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "added host %s: %w", h.Host, err)
		}
		out = append(out, fmt.Sprintf("%s:%s", h.Host, ip))
	}
	return out, nil
}
