package step

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/layer"

	"github.com/moby/buildkit/solver/pb"
)

// minNeedle is how many bytes a secret needs to be looked for in a layer: "1"
// or "yes" are in every layer, and finding them says nothing.
const minNeedle = 4

// secretFile mounts a secret as a file.
func (s *step) secretFile(ctx context.Context, m *pb.Mount) error {
	o := m.SecretOpt
	if o.ID == "" {
		return errdef.New(errdef.ErrInvalid, "mount %s: secret ID missing from mount options", m.Dest)
	}
	val, err := s.deps.Session.Secret(ctx, o.ID)
	if errors.Is(err, errdef.ErrNotFound) && o.Optional {
		return nil
	}
	if err != nil {
		return err
	}
	s.sawSecret(o.ID, val)
	return s.give(s.target(m), val, grant{uid: o.Uid, gid: o.Gid, mode: o.Mode & 0o777})
}

// sawSecret hides the value in the step's output and has its layer searched
// for it. The end of a file's last line is not part of the secret.
func (s *step) sawSecret(id string, val []byte) {
	val = bytes.TrimRight(val, "\r\n")
	if len(val) == 0 {
		return
	}
	s.job.Mask([][]byte{val})
	switch {
	case slices.Contains(s.deps.AllowSecretInLayer, id):
	case len(val) < minNeedle:
		s.job.Warn("secret %s has %d bytes: too few to tell whether the step left it in the image", id, len(val))
	default:
		s.seen = append(s.seen, layer.Needle{ID: id, Value: val})
	}
}

// searchSecrets fails when a tree that would be kept holds a secret that the
// step could read. Cache mounts are not searched: they are part of no image.
func (s *step) searchSecrets(ctx context.Context) error {
	if len(s.seen) == 0 {
		return nil
	}
	for _, t := range s.trees {
		if t.active == nil || t.output == int64(pb.SkipOutput) {
			continue
		}
		found, err := layer.Scan(ctx, t.active.Upper(), s.seen)
		if err != nil {
			return fmt.Errorf("search the layer for secrets: %w", err)
		}
		if len(found) > 0 {
			return s.leaked(t.dest, found)
		}
	}
	return nil
}

// maxLeaks bounds how many places an error names.
const maxLeaks = 5

// mask stands for a secret in messages.
const mask = "*****"

func (s *step) leaked(dest string, found []layer.Finding) error {
	var where []string
	for i, f := range found {
		if i == maxLeaks {
			where = append(where, fmt.Sprintf("and %d more", len(found)-maxLeaks))
			break
		}
		name := path.Join(dest, f.Path)
		for _, n := range s.seen {
			name = strings.ReplaceAll(name, string(n.Value), mask) // a name may be what holds it
		}
		where = append(where, fmt.Sprintf("secret %s in %s (%s)", f.ID, name, f.Form))
	}
	err := errdef.New(errdef.ErrDenied, "the step left a secret in its layer, nothing was kept: %s", strings.Join(where, ", "))
	return errdef.WithHint(err, "remove it in the same RUN; if it may be public, build with --allow secret-in-layer=%s", found[0].ID)
}
