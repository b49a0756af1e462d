package logs

import (
	"encoding/json"
	"errors"
	"os"
	"time"
)

// parkedMax bounds the file of lines that a destination does not want. When it is reached, the
// file before it (….parked.1) goes.
const parkedMax = 1 << 20

// parkedLine is one line of that file, JSON.
type parkedLine struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Line   []byte    `json:"line"` // base64, since it may be what the destination choked on
	Error  string    `json:"error"`
}

// reject sets the first record of the batch aside.
func (sh *shipper) reject(cause error) error {
	r := sh.batch[0]
	err := park(shipPath(sh.store.dir, sh.name)+parkedSuffix, parkedLine{r.Time, r.Stream.String(), r.Line, cause.Error()})
	sh.mu.Lock()
	sh.p.Rejected.add(1, len(r.Line))
	sh.p.LastReject = cause.Error()
	sh.forward(1)
	sh.mu.Unlock()
	sh.store.moved()
	return err
}

func park(path string, l parkedLine) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if st, err := os.Stat(path); err == nil && st.Size()+int64(len(data)) > parkedMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
