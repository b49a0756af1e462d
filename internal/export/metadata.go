package export

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ImageID is what --iidfile holds and -q prints: the image's id; for several
// platforms the index's digest, or, when no index was written, the id of the
// first image. "" when no output is an image.
func ImageID(results []Result) digest.Digest {
	for _, r := range results {
		if r.ConfigDigest != "" {
			return r.ConfigDigest
		}
		if r.Descriptor != nil {
			return r.Descriptor.Digest
		}
		if len(r.Images) > 0 {
			return r.Images[0].ID
		}
	}
	return ""
}

// Metadata is what --metadata-file holds, in buildx's keys. Of several outputs
// the last one that has a value gives it.
func Metadata(results []Result) map[string]any {
	m := map[string]any{}
	for _, r := range results {
		if r.ConfigDigest != "" {
			m["containerimage.config.digest"] = r.ConfigDigest.String()
		}
		switch {
		case r.Descriptor != nil:
			m["containerimage.digest"] = r.Descriptor.Digest.String()
			m["containerimage.descriptor"] = r.Descriptor
		case r.ConfigDigest != "" && m["containerimage.digest"] == nil:
			m["containerimage.digest"] = r.ConfigDigest.String() // as docker without a manifest
		}
		if len(r.Names) > 0 {
			names := make([]string, len(r.Names))
			for i, n := range r.Names {
				names[i] = n.String()
			}
			m["image.name"] = strings.Join(names, ",")
		}
	}
	return m
}

// Text is metadata as BuildKit's clients get it: what is no text is JSON in base64.
func Text(metadata map[string]any) map[string]string {
	out := map[string]string{}
	for k, v := range metadata {
		switch v := v.(type) {
		case string:
			out[k] = v
		default:
			if raw, err := json.Marshal(v); err == nil {
				out[k] = base64.StdEncoding.EncodeToString(raw)
			}
		}
	}
	return out
}
