package export

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/oci"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func at(seconds int64) *time.Time {
	t := time.Unix(seconds, 0).UTC()
	return &t
}

func layerInfos(n int) []layerInfo {
	var out []layerInfo
	for i := range n {
		out = append(out, layerInfo{digest.FromString(fmt.Sprint(i)), time.Unix(int64(1000+i), 0)})
	}
	return out
}

// history writes and reads a history as one text: "step@seconds", with a minus
// before empty ones.
func historyJSON(steps ...string) string {
	var out []string
	for _, s := range steps {
		name, when, timed := strings.Cut(s, "@")
		by, empty := strings.CutPrefix(name, "-")
		line := fmt.Sprintf(`{"created_by":%q`, by)
		if empty {
			line += `,"empty_layer":true`
		}
		if timed {
			var sec int64
			fmt.Sscan(when, &sec)
			line += fmt.Sprintf(`,"created":%q`, time.Unix(sec, 0).UTC().Format(time.RFC3339))
		}
		out = append(out, line+"}")
	}
	return "[" + strings.Join(out, ",") + "]"
}

func steps(t *testing.T, raw []byte) []string {
	t.Helper()
	img, err := oci.ParseImage(raw)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, h := range img.History {
		s := h.CreatedBy
		if s == "" {
			s = "?"
		}
		if h.EmptyLayer {
			s = "-" + s
		}
		if h.Created != nil {
			s += fmt.Sprintf("@%d", h.Created.Unix())
		}
		out = append(out, s)
	}
	return out
}

func TestFinishConfigHistory(t *testing.T) {
	base := fmt.Sprintf(`{"os":"linux","architecture":"amd64","created":%q,"rootfs":{"type":"layers","diff_ids":[%q]},"history":%s}`,
		at(10).Format(time.RFC3339), digest.FromString("0"), historyJSON("ADD rootfs@10", "-CMD sh@11"))
	for _, tt := range []struct {
		name    string
		history string
		base    string
		layers  int
		epoch   *time.Time
		want    []string
		created int64
	}{
		{"one for each", historyJSON("ADD rootfs@10", "-CMD sh@11", "RUN a", "-ENV x", "COPY b"), base, 3, nil,
			[]string{"ADD rootfs@10", "-CMD sh@11", "RUN a@1001", "-ENV x@1001", "COPY b@1002"}, 1002},
		{"only metadata", historyJSON("ADD rootfs@10", "-CMD sh@11", "-ENV x"), base, 1, nil,
			[]string{"ADD rootfs@10", "-CMD sh@11", "-ENV x@11"}, 11},
		{"metadata before the first layer", historyJSON("ADD rootfs@10", "-CMD sh@11", "-ENV x", "RUN a"), base, 2, nil,
			[]string{"ADD rootfs@10", "-CMD sh@11", "-ENV x@1001", "RUN a@1001"}, 1001},
		{"metadata first", historyJSON("-ENV x", "COPY b"), "", 1, nil, []string{"-ENV x@1000", "COPY b@1000"}, 1000},
		{"more entries than layers", historyJSON("ADD rootfs@10", "-CMD sh@11", "RUN a", "COPY b"), base, 2, nil,
			[]string{"ADD rootfs@10", "-CMD sh@11", "RUN a@1001", "-COPY b@1001"}, 1001},
		{"nothing at all", historyJSON("RUN a"), "", 0, nil, []string{"-RUN a"}, 0},
		{"no history", "[]", "", 2, nil, []string{"?@1000", "?@1001"}, 1001},
		{"base without history", historyJSON("RUN a"), strings.Replace(base, historyJSON("ADD rootfs@10", "-CMD sh@11"), "[]", 1), 2, nil,
			[]string{"?@1000", "RUN a@1001"}, 1001},
		{"merged layers", historyJSON("ADD rootfs@10", "-CMD sh@11", "COPY a"), base, 3, nil,
			[]string{"ADD rootfs@10", "-CMD sh@11", "COPY a@1001", "?@1002"}, 1002},
		{"epoch", historyJSON("ADD rootfs@10", "-CMD sh@11", "RUN a", "-ENV x@3"), base, 2, at(5),
			[]string{"ADD rootfs@10", "-CMD sh@11", "RUN a@5", "-ENV x@3"}, 3},
		{"epoch without a step", "[]", "", 0, at(5), nil, 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := fmt.Sprintf(`{"os":"linux","architecture":"amd64","history":%s}`, tt.history)
			got, err := finishConfig(configInput{raw: []byte(raw), base: []byte(tt.base), layers: layerInfos(tt.layers), epoch: tt.epoch})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, steps(t, got)); d != "" {
				t.Errorf("history (-want +got):\n%s", d)
			}
			img, err := oci.ParseImage(got)
			if err != nil {
				t.Fatal(err)
			}
			if len(img.RootFS.DiffIDs) != tt.layers {
				t.Errorf("got %d layers, want %d", len(img.RootFS.DiffIDs), tt.layers)
			}
			if created := img.Created; (created == nil) != (tt.created == 0) || (created != nil && created.Unix() != tt.created) {
				t.Errorf("created: got %v, want %d", created, tt.created)
			}
		})
	}
}

// TestFinishConfigKeeps holds docker's additions and what nobody knows.
func TestFinishConfigKeeps(t *testing.T) {
	const config = `{"Healthcheck":{"Test":["CMD","true"],"Interval":5000000000},"StopSignal":"SIGQUIT","Shell":["/bin/ash","-c"],"OnBuild":["RUN x"],"Volumes":{"/data":{}},"ExposedPorts":{"80/tcp":{}},"ArgsEscaped":true}`
	raw := `{"architecture":"arm","os":"linux","variant":"v7","author":"me","config":` + config + `,"moby.buildkit.cache.v0":"x"}`
	got, err := finishConfig(configInput{raw: []byte(raw), layers: layerInfos(1)})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(got, &fields); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"config": config, "variant": `"v7"`, "author": `"me"`, "moby.buildkit.cache.v0": `"x"`} {
		if string(fields[key]) != want {
			t.Errorf("%s: got %s, want %s", key, fields[key], want)
		}
	}
	again, err := finishConfig(configInput{raw: []byte(raw), layers: layerInfos(1)})
	if err != nil || string(again) != string(got) {
		t.Errorf("the second time it is\n%s\nnot\n%s (%v)", again, got, err)
	}
}

func TestFinishConfigDefault(t *testing.T) {
	got, err := finishConfig(configInput{platform: oci.Platform{OS: "linux", Architecture: "arm64"}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"architecture":"arm64","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFinishConfigRefuses(t *testing.T) {
	for _, raw := range []string{`{`, `null`, `[]`, `{"os":"linux"}`, `{"architecture":"amd64"}`} {
		if _, err := finishConfig(configInput{raw: []byte(raw)}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", raw, err)
		}
	}
}
