package supervise

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"dhow/internal/container"
	"dhow/internal/store"
	"dhow/internal/sys"
)

// KeptFile is in a directory of store.KeptLogsDir: a Kept as JSON, beside the log.
const KeptFile = "container.json"

// Kept says whose log it is that outlived its container.
type Kept struct {
	Record  *container.Record
	Removed time.Time
}

// keepLog moves a container's log to where it outlives the container, for one
// who holds the lock. One that was killed half-way is completed by the next.
func keepLog(st *store.Store, rec *container.Record) error {
	log := LogsDir(Dir(st, rec.ID))
	if _, err := os.Stat(log); errors.Is(err, os.ErrNotExist) {
		return nil // there is none, or it was moved already
	}
	to := filepath.Join(st.KeptLogsDir(), rec.ID)
	if err := os.MkdirAll(to, 0o700); err != nil {
		return st.FileError(err)
	}
	text, err := json.Marshal(Kept{rec, time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := sys.WriteFileAtomic(filepath.Join(to, KeptFile), text, 0o600); err != nil {
		return st.FileError(err)
	}
	return os.Rename(log, LogsDir(to))
}
