package test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdCase builds the directory NAME and compares the result with the
// expectations in NAME.want:
//
//	case NAME [BUILD OPTIONS]
//	! case NAME [BUILD OPTIONS]
//
// The second form wants the build to fail; stderr has its words. A NAME with a
// suffix after "@" uses the directory before it, so that one context serves
// several cases.
func cmdCase(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: case NAME [BUILD OPTIONS]")
	}
	name := args[0]
	context, _, _ := strings.Cut(name, "@")
	if neg {
		options := append([]string{"build", "--progress=plain", "-o", "type=cacheonly"}, args[1:]...)
		verdict(ts, true, ts.Exec("dhow", append(options, context)...))
		return
	}
	want, err := parseWant(ts.ReadFile(name + ".want"))
	ts.Check(err)
	got, config, err := buildCase(ts, "dhow", nil, name, context, want.wantsConfig(), args[1:])
	if err != nil {
		ts.Fatalf("case %s: %v", name, err)
	}
	if diff := want.compare(got, config); len(diff) > 0 {
		ts.Fatalf("case %s:\n\t%s", name, strings.Join(diff, "\n\t"))
	}
	if shared.peer == nil {
		return
	}
	theirs, theirConfig, err := buildCase(ts, shared.peer.program, shared.peer.args, "peer-"+name, context, want.wantsConfig(), args[1:])
	if err != nil {
		ts.Fatalf("case %s: the peer: %v", name, err)
	}
	if diff := compareTrees(got, theirs); len(diff) > 0 {
		ts.Fatalf("case %s: dhow and the peer differ:\n\t%s", name, strings.Join(diff, "\n\t"))
	}
	if diff := want.compare(theirs, theirConfig); len(diff) > 0 {
		ts.Fatalf("case %s: the peer does not do what the script wants:\n\t%s", name, strings.Join(diff, "\n\t"))
	}
}

// buildCase runs one build with its root file system as a tar and, when asked
// for, its image as an OCI layout, and reads both.
func buildCase(ts *testscript.TestScript, program string, prefix []string, name, context string, withConfig bool, options []string) (fileTree, map[string]json.RawMessage, error) {
	archive := ts.MkAbs(".case-" + name + ".tar")
	layout := ts.MkAbs(".case-" + name + ".oci")
	args := append(append([]string{}, prefix...), "build", "--progress=plain", "-o", "type=tar,dest="+archive)
	if withConfig {
		args = append(args, "-o", "type=oci,dest="+layout)
	}
	args = append(append(args, options...), context)
	if err := ts.Exec(program, args...); err != nil {
		return nil, nil, err
	}
	defer os.Remove(archive)
	tree, err := readTree(archive)
	if err != nil || !withConfig {
		return tree, nil, err
	}
	defer os.Remove(layout)
	config, err := readConfig(layout)
	return tree, config, err
}

// readConfig returns the "config" object of the only image in an OCI layout
// archive.
func readConfig(archive string) (map[string]json.RawMessage, error) {
	blobs := map[string][]byte{}
	err := walkTar(archive, func(h *tar.Header, r io.Reader) error {
		if h.Typeflag != tar.TypeReg || h.Size > 1<<20 {
			return nil
		}
		body, err := io.ReadAll(r)
		blobs[filepath.Clean(h.Name)] = body
		return err
	})
	if err != nil {
		return nil, err
	}
	next := blobs["index.json"]
	// index → manifest, through an index of platforms where there is one.
	for range 3 {
		var doc struct {
			Manifests []struct{ Digest string }
			Config    struct{ Digest string }
		}
		if err := json.Unmarshal(next, &doc); err != nil {
			return nil, fmt.Errorf("%s: %w", archive, err)
		}
		digest := doc.Config.Digest
		if len(doc.Manifests) > 0 {
			digest = doc.Manifests[0].Digest
		}
		algorithm, hex, _ := strings.Cut(digest, ":")
		next = blobs[filepath.Join("blobs", algorithm, hex)]
		if len(doc.Manifests) > 0 {
			continue
		}
		var image struct{ Config map[string]json.RawMessage }
		err := json.Unmarshal(next, &image)
		return image.Config, err
	}
	return nil, errors.New(archive + ": no image in the layout")
}
