package testkit

import (
	"testing"
	"time"
)

// Patience is how long a test waits for what has to happen: only what hangs takes
// as long, on whatever machine.
const Patience = time.Minute

// Until waits until the condition holds, looking again and again. The test ends
// after Patience.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}
