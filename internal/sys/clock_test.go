package sys

import (
	"testing"
	"time"
)

func TestAt(t *testing.T) {
	for _, at := range []time.Time{time.Now().Add(30 * time.Millisecond).Round(0), time.Now().Add(-time.Hour), {}} {
		rang := make(chan time.Time, 1)
		stop, err := At(at, func() { rang <- time.Now().Round(0) })
		if err != nil {
			t.Fatal(err)
		}
		if now := <-rang; now.Before(at) {
			t.Errorf("got %v, want it not before %v", now, at)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// Stopping waits, so that what f uses may be given up then.
func TestAtStopped(t *testing.T) {
	stop, err := At(time.Now().Add(time.Hour), func() { t.Error("it rang") })
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
