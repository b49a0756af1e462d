package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

const (
	dbName = "dhow.db"
	// maxConns bounds the readers at work at once; connections are opened as they
	// are needed, since each costs a third of a millisecond.
	maxConns = 4
)

// db is a small pool of connections to one database file.
//
// Writers queue on one slot: SQLite lets one write at a time, and its own
// waiting polls. Between processes it does poll, until the context ends.
type db struct {
	path   string
	slots  chan struct{} // capacity maxConns, one taken by each who works
	writer chan struct{} // capacity 1, taken by the one who writes
	closed chan struct{}
	once   sync.Once // closes

	mu   sync.Mutex
	free []*sqlite.Conn // guarded by mu: those that are open and nobody uses
}

var errClosed = errors.New("database: the store is closed")

// openDB opens the database, bringing its schema up to date.
func openDB(ctx context.Context, root string) (*db, error) {
	d := &db{
		path:   filepath.Join(root, dbName),
		slots:  make(chan struct{}, maxConns),
		writer: make(chan struct{}, 1),
		closed: make(chan struct{}),
	}
	version := -1
	err := d.read(ctx, func(c *sqlite.Conn) (err error) {
		version, err = userVersion(c)
		return err
	})
	if err == nil && version != len(migrations) {
		err = d.migrate(ctx, root)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func userVersion(c *sqlite.Conn) (int, error) {
	v := 0
	err := sqlitex.ExecuteTransient(c, "PRAGMA user_version", &sqlitex.ExecOptions{
		ResultFunc: func(st *sqlite.Stmt) error { v = st.ColumnInt(0); return nil },
	})
	return v, err
}

// migrate makes or updates the schema, one process at a time. The file lock is
// needed beside SQLite's own, because turning on WAL gives up at once when
// somebody else does the same.
func (d *db) migrate(ctx context.Context, root string) error {
	lock, err := sys.LockFile(ctx, filepath.Join(root, "schema.lock"), true)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	err = d.read(ctx, func(c *sqlite.Conn) error {
		return sqlitex.ExecuteTransient(c, "PRAGMA journal_mode = WAL", nil)
	})
	if err != nil {
		return err
	}
	return d.write(ctx, func(c *sqlite.Conn) error {
		version, err := userVersion(c)
		if err != nil {
			return err
		}
		if version > len(migrations) {
			return errdef.WithHint(errdef.New(errdef.ErrUnsupported,
				"database %s: schema version %d, this dhow knows up to %d", d.path, version, len(migrations)),
				"a newer dhow wrote it: use that one, or another --root")
		}
		for ; version < len(migrations); version++ {
			if err := sqlitex.ExecuteScript(c, migrations[version], nil); err != nil {
				return fmt.Errorf("migrate to version %d: %w", version+1, err)
			}
		}
		return sqlitex.ExecuteTransient(c, fmt.Sprintf("PRAGMA user_version = %d", len(migrations)), nil)
	})
}

// connect opens one connection.
//
// synchronous=NORMAL in WAL mode: a transaction survives the death of any
// process; after a power cut the last ones may be missing, but never half of
// one, and never a later without an earlier. Nothing here is worth an fsync a
// transaction (1 to 10 ms each): a lost record costs one build step or one
// unpacking, and its files are found and removed by Prune.
func (d *db) connect() (*sqlite.Conn, error) {
	if _, err := sqliteHeap(); err != nil {
		return nil, err
	}
	c, err := sqlite.OpenConn(d.path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		return nil, err
	}
	err = sqlitex.ExecuteTransient(c, "PRAGMA synchronous = NORMAL", nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// close waits for those at work and closes all connections. A second call does
// nothing.
func (d *db) close() (err error) {
	d.once.Do(func() {
		close(d.closed)
		for range maxConns {
			d.slots <- struct{}{}
		}
		err = d.closeFree()
	})
	return err
}

// take returns the open connection that was used last, or nil.
func (d *db) take() *sqlite.Conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.free) == 0 {
		return nil
	}
	c := d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	return c
}

// put gives back what take returned, or was opened instead.
func (d *db) put(c *sqlite.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = append(d.free, c)
}

// idle closes the connections that nobody uses now, for a process that waits;
// the next use opens one again.
func (d *db) idle() error {
	err := d.closeFree()
	h, heapErr := sqliteHeap()
	if heapErr == nil {
		heapErr = h.trim()
	}
	return errors.Join(err, heapErr)
}

func (d *db) closeFree() (err error) {
	for c := d.take(); c != nil; c = d.take() {
		err = errors.Join(err, c.Close())
	}
	return err
}

// read runs f with a connection. What f sees with several statements may stem
// from several moments.
func (d *db) read(ctx context.Context, f func(*sqlite.Conn) error) (err error) {
	select {
	case d.slots <- struct{}{}:
		defer func() { <-d.slots }()
	case <-d.closed:
		return errClosed
	case <-ctx.Done():
		return fmt.Errorf("database: %w", context.Cause(ctx))
	}
	c := d.take()
	if c == nil {
		if c, err = d.connect(); err != nil {
			return d.kind(err)
		}
	}
	defer d.put(c)
	c.SetInterrupt(ctx.Done())
	defer c.SetInterrupt(nil)
	if err := f(c); err != nil {
		if ctx.Err() != nil && sqlite.ErrCode(err).ToPrimary() == sqlite.ResultInterrupt {
			return fmt.Errorf("database: %w", context.Cause(ctx))
		}
		return d.kind(err)
	}
	return nil
}

// write runs f in a transaction that sees and changes one state.
func (d *db) write(ctx context.Context, f func(*sqlite.Conn) error) error {
	select {
	case d.writer <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("database: %w", context.Cause(ctx))
	}
	defer func() { <-d.writer }()
	return d.read(ctx, func(c *sqlite.Conn) (err error) {
		end, err := sqlitex.ImmediateTransaction(c)
		if err != nil {
			return err
		}
		defer end(&err)
		return f(c)
	})
}

// kind gives SQLite's errors the kinds that callers tell apart.
func (d *db) kind(err error) error {
	switch code := sqlite.ErrCode(err); code.ToPrimary() {
	case sqlite.ResultFull:
		return noSpace(filepath.Dir(d.path), err)
	case sqlite.ResultIOErr:
		// The shared-memory file could not grow.
		if code == sqlite.ResultIOErrSHMSize || code == sqlite.ResultIOErrSHMMap {
			return noSpace(filepath.Dir(d.path), err)
		}
	case sqlite.ResultCantOpen, sqlite.ResultReadOnly, sqlite.ResultPerm:
		return errdef.As(errdef.ErrDenied, fmt.Errorf("database %s: %w", d.path, err))
	case sqlite.ResultCorrupt, sqlite.ResultNotADB:
		return errdef.WithHint(errdef.As(errdef.ErrIntegrity, fmt.Errorf("database %s: %w", d.path, err)),
			"it is damaged: move it away to start with an empty one")
	}
	return err
}

// noSpace marks a full disk, naming the directory that lies on it.
func noSpace(dir string, err error) error {
	if errors.Is(err, errdef.ErrNoSpace) {
		return err
	}
	return errdef.WithHint(errdef.New(errdef.ErrNoSpace, "no space left in %s: %w", dir, err),
		"free some with \"dhow builder prune --all\" or \"dhow image prune\", or use another --root")
}

// diskFull is noSpace for errors of the file system, and leaves others alone.
func diskFull(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return noSpace(dir, err)
	}
	return err
}

// execute runs a statement that returns no rows. Statements are prepared once a
// connection.
func execute(c *sqlite.Conn, query string, args ...any) error {
	return sqlitex.Execute(c, query, &sqlitex.ExecOptions{Args: args})
}

// query calls row for each row of the result.
func query(c *sqlite.Conn, query string, row func(*sqlite.Stmt) error, args ...any) error {
	return sqlitex.Execute(c, query, &sqlitex.ExecOptions{Args: args, ResultFunc: row})
}

// bytesAt reads a column as bytes, nil for NULL.
func bytesAt(st *sqlite.Stmt, col int) []byte {
	if st.ColumnIsNull(col) {
		return nil
	}
	b := make([]byte, st.ColumnLen(col))
	st.ColumnBytes(col, b)
	return b
}

// stamp is a time as it is stored.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// timeAt reads a column as a time in UTC.
func timeAt(st *sqlite.Stmt, col int) time.Time {
	n := st.ColumnInt64(col)
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// orNow replaces the zero time.
func orNow(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

// jsonText encodes v, which holds nothing that JSON has no form for.
func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}
