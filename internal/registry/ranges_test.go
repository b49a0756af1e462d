package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/testkit"
)

// rangeServer serves one blob slowly and notes what is asked for.
type rangeServer struct {
	blob  []byte
	spoil func(w http.ResponseWriter, r *http.Request, from, to int) bool // answered otherwise

	mu     sync.Mutex
	now    int // guarded by mu, as are the following
	most   int // at once
	ranges []string
}

func (s *rangeServer) handle(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	from, to := 0, len(s.blob)-1
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil {
		if s.spoil != nil && s.spoil(w, r, from, to) {
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(s.blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
	for ; from <= to; from += 256 << 10 {
		if _, err := w.Write(s.blob[from:min(to+1, from+256<<10)]); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		time.Sleep(time.Millisecond)
	}
}

func TestRanges(t *testing.T) {
	data, desc := randomBlob(40 << 20)
	var once sync.Once
	for name, tt := range map[string]struct {
		slow  int64
		spoil func(w http.ResponseWriter, r *http.Request, from, to int) bool
		split bool
	}{
		"slow": {slow: 1 << 40, split: true},
		"fast": {slow: -1},
		"cut": {slow: 1 << 40, split: true, spoil: func(w http.ResponseWriter, _ *http.Request, from, to int) (cut bool) {
			if from > 10<<20 {
				once.Do(func() { cut = true })
			}
			if cut {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(data[from : from+1000])
			}
			return cut
		}},
		"ignored": {slow: 1 << 40, spoil: func(w http.ResponseWriter, _ *http.Request, _, _ int) bool {
			w.Write(data)
			return true
		}},
		"another range": {slow: 1 << 40, spoil: func(w http.ResponseWriter, r *http.Request, from, to int) bool {
			if to-from+1 > rangeBytes {
				return false // one connection gets what it asks for
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+1, to+1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(data[from+1 : to+1])
			return true
		}},
		"other bytes": {slow: 1 << 40, split: true, spoil: func(w http.ResponseWriter, _ *http.Request, from, to int) bool {
			if from < 20<<20 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(make([]byte, to-from+1))
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &rangeServer{blob: data, spoil: tt.spoil}
			_, host := serve(t, blobHandler(s.handle))
			got, err := fetchAll(quick(Options{Slow: tt.slow, Stall: testkit.Patience}), mustRef(t, host+"/a/b:v1"), desc)
			if name == "other bytes" {
				if !errors.Is(err, errdef.ErrIntegrity) {
					t.Errorf("got %v, want ErrIntegrity", err)
				}
			} else if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if split := s.most > 1 && len(s.ranges) > 10; split != tt.split {
				t.Errorf("split into ranges: got %v (%d at once, %s), want %v", split, s.most, strings.Join(s.ranges, " "), tt.split)
			}
		})
	}
}

// TestRangesClosed: a reader that is closed early leaves nothing under way.
func TestRangesClosed(t *testing.T) {
	data, desc := randomBlob(40 << 20)
	s := &rangeServer{blob: data}
	_, host := serve(t, blobHandler(s.handle))
	c := quick(Options{Slow: 1 << 40, Stall: testkit.Patience})
	rc, err := c.FetchAt(context.Background(), mustRef(t, host+"/a/b:v1"), desc, 1000)
	if err != nil {
		t.Fatal(err)
	}
	b := rc.(*blob)
	buf := make([]byte, 1<<20)
	for b.rest == nil {
		if _, err := rc.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
	if err := rc.Close(); err != nil {
		t.Error(err)
	}
}
