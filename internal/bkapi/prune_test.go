package bkapi

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
)

// two builds two steps, the second on the first.
func two(t *testing.T, c *client.Client) {
	t.Helper()
	st := llb.Scratch().File(llb.Mkfile("/a", 0o644, make([]byte, 1000)), llb.WithCustomName("make a")).
		File(llb.Mkfile("/b", 0o644, make([]byte, 2000)), llb.WithCustomName("make b"))
	def, err := st.Marshal(t.Context())
	must(t, err)
	_, err = solve(t, c, def, client.SolveOpt{})
	must(t, err)
}

// names are what the cache holds, the smallest first.
func names(t *testing.T, c *client.Client, o ...client.DiskUsageOption) string {
	t.Helper()
	list, err := c.DiskUsage(t.Context(), o...)
	must(t, err)
	var out []string
	for _, u := range list {
		out = append(out, u.Description)
	}
	return strings.Join(out, ",")
}

// pruned are what goes, in order, and its size.
func pruned(t *testing.T, c *client.Client, o ...client.PruneOption) (what string, size int64) {
	t.Helper()
	ch := make(chan client.UsageInfo)
	done := make(chan struct{})
	var out []string
	go func() {
		defer close(done)
		for u := range ch {
			out = append(out, u.Description)
			size += u.Size
		}
	}()
	err := c.Prune(t.Context(), ch, o...)
	close(ch)
	<-done
	must(t, err)
	return strings.Join(out, ","), size
}

func TestDiskUsage(t *testing.T) {
	c := serve(t)
	two(t, c)
	list, err := c.DiskUsage(t.Context())
	must(t, err)
	if len(list) != 2 || list[0].Size != 1000 || list[1].Size != 2000 || list[0].RecordType != client.UsageRecordTypeRegular || list[1].InUse || list[1].Shared || list[1].Mutable {
		t.Fatalf("got %+v, want two steps of 1000 and 2000 bytes", list)
	}
	if len(list[1].Parents) != 1 || list[1].Parents[0] != list[0].ID {
		t.Errorf("got the parents %v, want %s", list[1].Parents, list[0].ID)
	}
	for filter, want := range map[string]string{
		"type==regular": "make a,make b", "description~=b$": "make b", "mutable": "", "parents": "make b", "private,id==\"" + list[0].ID + "\"": "make a",
	} {
		if got := names(t, c, client.WithFilter([]string{filter})); got != want {
			t.Errorf("%s: got %q, want %q", filter, got, want)
		}
	}
	if got := names(t, c, client.WithAgeLimit(time.Hour)); got != "" {
		t.Errorf("unused for an hour: got %q, want nothing", got)
	}
	if _, err := c.DiskUsage(t.Context(), client.WithFilter([]string{"type==="})); err == nil || !strings.Contains(err.Error(), "filter") {
		t.Errorf("a broken filter: got %v", err)
	}
}

func TestPruneOptions(t *testing.T) {
	c := serve(t)
	two(t, c)
	for _, test := range []struct {
		o    client.PruneOption
		want string
		size int64
	}{
		{client.WithKeepOpt(time.Hour, 0, 0, 0), "", 0},
		{client.WithKeepOpt(0, 3000, 1, 0), "", 0},
		{client.WithKeepOpt(0, 0, 0, 1), "", 0},
		{client.WithFilter([]string{"type==exec.cachemount"}), "", 0},
		{client.WithFilter([]string{"description~=b$"}), "make b", 2000},
		{client.WithKeepOpt(0, 0, 1000, 0), "", 0},
		{client.WithKeepOpt(0, 0, 999, 0), "make a", 1000},
	} {
		if got, size := pruned(t, c, test.o); got != test.want || size != test.size {
			t.Errorf("got %q, %d bytes, want %q, %d", got, size, test.want, test.size)
		}
	}
	two(t, c)
	if _, size := pruned(t, c, client.WithKeepOpt(0, 0, 0, 1<<60)); size != 3000 {
		t.Errorf("free space that there cannot be: got %d bytes, want all", size)
	}
	if err := c.Prune(t.Context(), nil, client.WithFilter([]string{"type==="})); err == nil || !strings.Contains(err.Error(), "filter") {
		t.Errorf("a broken filter: got %v", err)
	}
}
