package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// A layerFunc writes one uncompressed layer.
type layerFunc func(w io.Writer) error

// An imageSpec is an image before it has bytes: history has one line a layer.
type imageSpec struct {
	tags    []string
	layers  []layerFunc
	history []string
	env     []string
	cmd     []string
	workdir string
}

// The parts of an image configuration that the stand-ins use (image-spec
// v1.1.1, config.md).
type imageConfig struct {
	Architecture string          `json:"architecture"`
	OS           string          `json:"os"`
	Created      time.Time       `json:"created"`
	Config       containerConfig `json:"config"`
	RootFS       rootFS          `json:"rootfs"`
	History      []historyEntry  `json:"history"`
}

type containerConfig struct {
	Env        []string `json:"Env"`
	Cmd        []string `json:"Cmd"`
	WorkingDir string   `json:"WorkingDir,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type historyEntry struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// manifestEntry is an element of a docker archive's manifest.json.
type manifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// writeArchive makes the docker archive of spec at path, whole or not at all.
func writeArchive(path string, spec imageSpec) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	defer tmp.Close()
	tw := tar.NewWriter(tmp)
	config := imageConfig{
		Architecture: runtime.GOARCH, OS: "linux", Created: epoch(),
		Config: containerConfig{Env: spec.env, Cmd: spec.cmd, WorkingDir: spec.workdir},
		RootFS: rootFS{Type: "layers"},
	}
	entry := manifestEntry{RepoTags: spec.tags}
	for i, layer := range spec.layers {
		sum, err := addLayer(tw, filepath.Dir(path), layer)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:"+sum)
		config.History = append(config.History, historyEntry{epoch(), spec.history[i]})
		entry.Layers = append(entry.Layers, layerName(sum))
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	entry.Config = hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]manifestEntry{entry})
	if err != nil {
		return err
	}
	if err := addFile(tw, entry.Config, raw); err != nil {
		return err
	}
	if err := addFile(tw, "manifest.json", manifest); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func layerName(sum string) string { return sum + "/layer.tar" }

// addLayer writes the layer to a scratch file first, because a tar header
// comes before the bytes and needs their number and, for the name, digest.
func addLayer(tw *tar.Writer, dir string, layer layerFunc) (sum string, err error) {
	scratch, err := os.CreateTemp(dir, "layer.tmp")
	if err != nil {
		return "", err
	}
	defer os.Remove(scratch.Name())
	defer scratch.Close()
	h := sha256.New()
	if err := layer(io.MultiWriter(scratch, h)); err != nil {
		return "", err
	}
	size, err := scratch.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", err
	}
	if _, err := scratch.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	sum = hex.EncodeToString(h.Sum(nil))
	if err := tw.WriteHeader(fileHeader(layerName(sum), size)); err != nil {
		return "", err
	}
	_, err = io.Copy(tw, scratch)
	return sum, err
}

func addFile(tw *tar.Writer, name string, body []byte) error {
	if err := tw.WriteHeader(fileHeader(name, int64(len(body)))); err != nil {
		return err
	}
	_, err := tw.Write(body)
	return err
}

func fileHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: epoch()}
}

// pushTo uploads an archive under HOST/library/NAME:TAG, where a client that
// uses the registry as a mirror of Docker Hub looks for it, and under
// HOST/NAME:TAG.
func pushTo(host string, tags []string, archive string) error {
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		for _, prefix := range []string{"library/", ""} {
			ref, err := name.ParseReference(host+"/"+prefix+tag, name.Insecure)
			if err != nil {
				return err
			}
			if err := remote.Write(ref, img); err != nil {
				return err
			}
		}
	}
	return nil
}
