package logs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"dhow/internal/logs/driver"
	"dhow/internal/sys"
)

// How delivery behaves, unless a driver's Limits say otherwise.
const (
	batchRecords  = 1000
	batchBytes    = 512 << 10
	verifyTimeout = 10 * time.Second
	sendTimeout   = 30 * time.Second // a destination that accepts and never reads is given up then
	firstPause    = 100 * time.Millisecond
	longestPause  = 30 * time.Second
	refusedPause  = 30 * time.Second // first pause of a destination that refuses us
	longestTold   = 5 * time.Minute  // of what a destination may ask for, and of a refused one
	// A batch sent to a destination that does not acknowledge counts as delivered
	// only when the connection has outlived it by this.
	unsure = 2 * time.Second
	// How long a destination has to read what it was sent last when shipping ends.
	partTimeout = time.Second
	// Batches that follow each other are remembered as one, up to so many bytes.
	markBytes = 32 << 10
	// A destination that failed is tried again with so many records: it may fail for
	// long, and others with it, each of which would have a whole batch in memory.
	probeRecords = 16
)

// shipper delivers a log to one destination. It is a cursor over the store, with
// one goroutine. States, as Stat shows them:
//
//	       ┌──────── more lines ───────┐
//	ok ────┴─ send ── error ──▶ retrying ── pause ──▶ send …
//	            ├──── Refuse ─▶ parked ── long pause ──▶ send …
//	            └──── Reject ─▶ the line is kept aside, the next one is sent
type shipper struct {
	store    *Store
	name     string
	options  driver.Options
	sender   driver.Sender
	d        driver.Delivery
	blocking bool // the container waits rather than that lines are dropped

	wake  chan struct{} // there are lines
	drain chan struct{} // closed: end when there are none
	done  chan struct{}
	stop  context.CancelFunc

	r      *reader // nil while there is nothing to send it to
	file   *sys.Slots
	batch  []Record
	places []behindOne // each record of batch
	arena  []byte      // their lines
	bite   int         // how many records to send at once; less than all after a Reject
	marks  []mark      // batches that may not have been read
	tries  int         // in a row that failed
	probe  bool        // the last one did, and did not reach the destination

	mu      sync.Mutex
	p       progress // guarded by mu
	dropped bool     // guarded by mu: lines since the progress was kept
}

// behindOne is where the log goes on behind a record, and what of the log is
// shipped with it and was dropped on the way there. Both count once the record is
// done with: until then it is read again after each failure.
type behindOne struct {
	place
	shipped count // nothing for a notice; a line in parts counts with the last
	dropped count
}

// mark is a batch that was sent to a destination that does not acknowledge.
type mark struct {
	before           place // the batch
	at               time.Time
	shipped, dropped count // with it, which counts for nothing if it is sent again
	end              int64 // bytes written then, as a Teller counts them
}

// newShipper opens a destination. A new one begins at the log's end, which is
// its beginning when the container is new.
func newShipper(s *Store, d Driver, info Info, end place) (*shipper, error) {
	k, err := s.kind(d.Name)
	if err != nil {
		return nil, err
	}
	o := driver.Options(d.Options)
	sh := &shipper{store: s, name: d.Name, options: o, d: delivery(k, o, s.shape.maxLine), blocking: o["mode"] == "blocking",
		wake: make(chan struct{}, 1), drain: make(chan struct{}), done: make(chan struct{})}
	var fresh bool
	if sh.file, sh.p, fresh, err = openProgress(s.dir, d.Name); err != nil {
		return nil, err
	}
	if fresh {
		sh.p.moveTo(end)
		if err := sh.p.keepIn(sh.file); err != nil {
			return nil, errors.Join(err, sh.file.Close())
		}
	}
	if sh.sender, err = openSender(k, info, o); err != nil {
		return nil, errors.Join(fmt.Errorf("log driver %s: %w", d.Name, err), sh.file.Close())
	}
	return sh, nil
}

// delivery fills in the defaults.
func delivery(k driver.Kind, o driver.Options, maxLine int) driver.Delivery {
	var d driver.Delivery
	if k.Delivery != nil {
		d = k.Delivery(o)
	}
	for value, otherwise := range map[*int]int{&d.Records: batchRecords, &d.Bytes: batchBytes, &d.Line: maxLine} {
		if *value == 0 {
			*value = otherwise
		}
	}
	if d.Timeout == 0 {
		d.Timeout = sendTimeout
	}
	if o["max-buffer-size"] != "" {
		d.Bound = max(o.Memory("max-buffer-size", 0), 1)
	}
	return d
}

// openSender opens a destination, and asks it whether it works if the options say
// so.
func openSender(k driver.Kind, info Info, o driver.Options) (driver.Sender, error) {
	sender, err := k.Open(info, o)
	if err != nil {
		return nil, err
	}
	v, ok := sender.(driver.Verifier)
	if !ok {
		return sender, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	if err := v.Verify(ctx); err != nil {
		return nil, errors.Join(err, sender.Close())
	}
	return sender, nil
}

func (sh *shipper) start() {
	ctx, stop := context.WithCancel(context.Background())
	sh.stop = stop
	go func() {
		defer close(sh.done)
		sh.run(ctx)
	}()
}

// close ends delivery where it is.
func (sh *shipper) close() error {
	sh.stop()
	<-sh.done
	sh.part()
	sh.release()
	return errors.Join(sh.sender.Close(), sh.file.Close())
}

// part sees to it that what was sent last to a destination that does not acknowledge
// was read, or is sent again by whoever ships next.
func (sh *shipper) part() {
	e, ok := sh.sender.(driver.Ender)
	if !ok || !sh.d.Unacknowledged || len(sh.marks) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), partTimeout)
	defer cancel()
	if !e.End(ctx) && sh.rewind() {
		sh.failed(errUnread, 0)
	}
}

var errUnread = errors.New("the other side has not read what was sent last")

// notify says that there are lines.
func (sh *shipper) notify() {
	select {
	case sh.wake <- struct{}{}:
	default:
	}
}

func (sh *shipper) draining() bool {
	select {
	case <-sh.drain:
		return true
	default:
		return false
	}
}

func (sh *shipper) run(ctx context.Context) {
	for ctx.Err() == nil {
		draining := sh.draining() // asked first: what is there then is all
		err := sh.fill(draining)
		if err == nil && len(sh.batch) == 0 {
			sh.keepDropped()
			if draining {
				return
			}
			sh.idle(ctx)
			continue
		}
		if err == nil {
			sh.linger(ctx)
			err = sh.send(ctx)
		}
		if driver.IsHeld(err) {
			sh.await(ctx, driver.After(err))
			err = nil
		}
		if err == nil {
			sh.tries, sh.probe = 0, false
			continue
		}
		if ctx.Err() != nil {
			return
		}
		sh.tries++
		sh.probe = !errors.Is(err, context.DeadlineExceeded) // it may have the batch, and tell of it later
		if sh.d.Tries > 0 && sh.tries > sh.d.Tries {
			err = driver.Refuse(err)
		}
		pause := pauseAfter(err, sh.tries, sh.d.Retry, rand.Float64())
		sh.failed(err, pause)
		if pause >= time.Second {
			sh.release()
		}
		sleep(ctx, pause)
	}
}

// idle waits for lines.
func (sh *shipper) idle(ctx context.Context) {
	select {
	case <-sh.wake:
	case <-sh.drain:
	case <-ctx.Done():
	}
}

// await waits for more lines, but not longer than d.
func (sh *shipper) await(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-sh.wake:
	case <-sh.drain:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// linger waits until the batch is full or old enough.
func (sh *shipper) linger(ctx context.Context) {
	if sh.d.Fill == 0 {
		return
	}
	timer := time.NewTimer(sh.d.Fill)
	defer timer.Stop()
	for !sh.full() && !sh.draining() {
		select {
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-sh.drain:
		case <-sh.wake:
		}
		if sh.fill(sh.draining()) != nil {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// pauseAfter decides how long to wait after so many failures in a row. fixed is
// the pause that the user chose, or 0; jitter is from 0 to 1.
func pauseAfter(err error, failures int, fixed time.Duration, jitter float64) time.Duration {
	if told := driver.After(err); told > 0 {
		return min(told, longestTold)
	}
	first, longest := firstPause, longestPause
	switch {
	case driver.IsRefused(err):
		first, longest = refusedPause, longestTold
	case fixed > 0:
		return fixed
	}
	pause := min(first<<min(failures-1, 16), longest)
	return time.Duration(float64(pause) * (0.8 + 0.4*jitter))
}

// release gives up the reader, and with it the segment that it holds open. The
// next batch is read again from where the destination is.
func (sh *shipper) release() {
	if sh.r != nil {
		sh.r.close()
		sh.r = nil
	}
	sh.batch, sh.places, sh.arena = nil, nil, nil
}

func (sh *shipper) full() bool {
	records := sh.d.Records
	if sh.probe {
		records = min(records, probeRecords)
	}
	return len(sh.batch) >= records || len(sh.arena) >= sh.d.Bytes
}

// fill adds what there is to the batch. With rest, a line that is not complete
// counts.
func (sh *shipper) fill(rest bool) error {
	if sh.r == nil {
		sh.r = newReader(sh.store.dir, ReadOptions{})
		sh.r.chunk = shipSize
		sh.r.startFrom(sh.p.place())
	}
	if len(sh.batch) == 0 {
		sh.arena = sh.arena[:0]
	}
	var rec Record
	for !sh.full() {
		ok, err := sh.r.next(&rec)
		if err != nil {
			return err
		}
		if !ok {
			for rest && sh.r.rest(&rec) {
				sh.add(rec)
			}
			return nil
		}
		if rec.Lost > 0 {
			sh.lost(sh.r.gone, rec.Time)
		}
		sh.add(rec)
	}
	return nil
}

// lost counts lines that were rotated away, and tells the destination.
func (sh *shipper) lost(gone totals, at time.Time) {
	text := fmt.Sprintf("dhow: %d lines (%d bytes) lost here: %s was behind by more than the log holds", gone.lines, gone.bytes, sh.name)
	sh.push(Record{Time: at, Stream: Stderr, Line: []byte(text)}, behindOne{place: sh.r.began, dropped: count{gone.lines, gone.bytes}})
}

// last returns the place behind what is in the batch.
func (sh *shipper) last() place {
	if n := len(sh.places); n > 0 {
		return sh.places[n-1].place
	}
	return sh.p.place()
}

// add puts a record into the batch, in parts if the destination wants that, unless
// so much is behind it that it has to be dropped.
func (sh *shipper) add(rec Record) {
	after := sh.r.after()
	if sh.d.Bound > 0 && sh.store.written() > after.bytes+uint64(sh.d.Bound) {
		sh.drop(rec, after)
		return
	}
	line, last, whole := rec.Line, rec.Partial, count{1, uint64(len(rec.Line))}
	for len(line) > sh.d.Line {
		rec.Line, rec.Partial = line[:sh.d.Line], true
		sh.push(rec, behindOne{place: sh.last()})
		line = line[sh.d.Line:]
	}
	rec.Line, rec.Partial = line, last
	sh.push(rec, behindOne{place: after, shipped: whole})
}

// drop leaves a record out: more is waiting than the destination is allowed.
func (sh *shipper) drop(rec Record, after place) {
	if n := len(sh.places); n > 0 {
		sh.places[n-1].place = after
		sh.places[n-1].dropped.add(1, len(rec.Line))
		return
	}
	if n := len(sh.marks); n > 0 { // it is read again if that batch is
		sh.marks[n-1].dropped.add(1, len(rec.Line))
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.p.Dropped.add(1, len(rec.Line))
	sh.dropped = true
	sh.p.moveTo(after)
}

// keepDropped keeps what nothing that was sent after it will.
func (sh *shipper) keepDropped() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.dropped {
		sh.keep()
	}
}

func (sh *shipper) push(rec Record, after behindOne) {
	start := len(sh.arena)
	sh.arena = append(sh.arena, rec.Line...)
	rec.Line = sh.arena[start:len(sh.arena):len(sh.arena)]
	if rec.Attrs != nil {
		rec.Attrs = append([]byte(nil), rec.Attrs...)
	}
	sh.batch = append(sh.batch, rec)
	sh.places = append(sh.places, after)
}

// send tries to deliver the batch once, and takes what was delivered from it.
func (sh *shipper) send(ctx context.Context) error {
	if sh.bite == 0 {
		sh.bite = len(sh.batch)
	}
	batch := sh.batch[:min(sh.bite, len(sh.batch))]
	if f, ok := sh.sender.(driver.Finisher); ok && sh.draining() {
		f.Finish()
	}
	timed, cancel := context.WithTimeout(ctx, sh.d.Timeout)
	n, err := sh.sender.Send(timed, batch)
	cancel()
	some := driver.Some(err)
	if err == nil || some > 0 {
		n = len(batch)
	}
	if n > 0 {
		sh.delivered(n)
	}
	switch {
	case some > 0:
		sh.rejectedSome(err, some)
		return nil
	case err == nil:
		if sh.bite *= 2; sh.bite >= len(sh.batch) {
			sh.bite = 0
		}
		return nil
	case driver.IsRejected(err) && n == 0 && len(batch) > 1:
		sh.bite = (len(batch) + 1) / 2 // one of them is to blame; find it
		return nil
	case driver.IsRejected(err) && n < len(batch):
		return sh.reject(err)
	}
	if sh.d.Unacknowledged {
		sh.rewind()
	}
	return err
}

// delivered moves the cursor behind the first n records of the batch.
func (sh *shipper) delivered(n int) {
	sh.mu.Lock()
	m := mark{before: sh.p.place(), at: sh.store.now()}
	for _, b := range sh.places[:n] {
		m.shipped.plus(b.shipped)
		m.dropped.plus(b.dropped)
	}
	if sh.d.Unacknowledged {
		sh.note(m)
	}
	sh.p.Shipped.plus(m.shipped)
	sh.p.Through, sh.p.Waiting = sh.batch[n-1].Time, time.Time{}
	sh.p.Error, sh.p.ErrorAt, sh.p.Next, sh.p.Parked = "", time.Time{}, time.Time{}, false
	sh.forward(n)
	sh.mu.Unlock()
	sh.store.moved()
}

// rejectedSome counts records of a batch that the destination did not want, without
// saying which.
func (sh *shipper) rejectedSome(err error, some int) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.p.Shipped.Lines -= min(uint64(some), sh.p.Shipped.Lines)
	sh.p.Rejected.Lines += uint64(some)
	sh.p.LastReject = err.Error()
	sh.keep()
}

// forward takes the first n records from the batch and keeps where we are. The
// caller holds mu.
func (sh *shipper) forward(n int) {
	sh.p.moveTo(sh.places[n-1].place)
	for _, b := range sh.places[:n] {
		sh.p.Dropped.plus(b.dropped)
	}
	sh.batch = sh.batch[:copy(sh.batch, sh.batch[n:])]
	sh.places = sh.places[:copy(sh.places, sh.places[n:])]
	sh.keep()
}

// segment returns the number of the oldest segment that is still needed.
func (sh *shipper) segment() uint64 {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.p.Segment
}

// keep writes the progress. What cannot be written costs duplicates later. The
// caller holds mu.
func (sh *shipper) keep() {
	sh.dropped = false
	if err := sh.p.keepIn(sh.file); err != nil {
		sh.p.Error, sh.p.ErrorAt = err.Error(), sh.store.now()
	}
}

// told asks the destination what is surely read.
func (sh *shipper) told() (written, read int64) {
	t, ok := sh.sender.(driver.Teller)
	if !ok {
		return 0, 0
	}
	written, unread := t.Told()
	return written, written - unread
}

// note remembers a batch, and forgets those that were read.
func (sh *shipper) note(m mark) {
	var read int64
	m.end, read = sh.told()
	sh.marks = slices.DeleteFunc(sh.marks, func(old mark) bool { return old.end <= read })
	if n := len(sh.marks); n > 0 && sh.marks[n-1].shipped.Bytes+m.shipped.Bytes < markBytes {
		last := &sh.marks[n-1]
		last.shipped.plus(m.shipped)
		last.dropped.plus(m.dropped)
		last.at, last.end = m.at, m.end
		return
	}
	sh.marks = append(sh.marks, m)
}

// rewind goes back before the batches that may never have been read when the
// connection broke: those that the other side's window says so of, and the last
// one if the connection did not outlive it for long. It says whether there are any.
func (sh *shipper) rewind() bool {
	_, read := sh.told()
	now := sh.store.now()
	sh.marks = slices.DeleteFunc(sh.marks, func(m mark) bool { return m.end <= read && now.Sub(m.at) > unsure })
	if len(sh.marks) == 0 {
		return false
	}
	sh.mu.Lock()
	sh.p.moveTo(sh.marks[0].before)
	for _, m := range sh.marks {
		sh.p.Shipped.minus(m.shipped)
		sh.p.Dropped.minus(m.dropped)
	}
	sh.marks = nil
	sh.keep()
	sh.mu.Unlock()
	sh.release()
	return true
}

// failed keeps what went wrong, for those who ask.
func (sh *shipper) failed(err error, pause time.Duration) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	now := sh.store.now()
	sh.p.Error, sh.p.ErrorAt, sh.p.Next = err.Error(), now.UTC(), now.Add(pause).UTC()
	sh.p.Parked = driver.IsRefused(err)
	if len(sh.batch) > 0 {
		sh.p.Waiting = sh.batch[0].Time
	}
	sh.keep()
}
