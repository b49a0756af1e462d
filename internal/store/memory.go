package store

import (
	"fmt"
	"sync"
	"unsafe"

	"modernc.org/libc"
	"modernc.org/memory"
	lib "modernc.org/sqlite/lib"
	"zombiezen.com/go/sqlite"
)

// heap is what SQLite's memory is taken from. Its own allocator keeps all that
// it ever had, half a megabyte in every process that waits beside a container.
type heap struct {
	mu    sync.Mutex
	pages memory.Allocator // guarded by mu

	// SQLite knows the functions by address alone.
	malloc   func(tls *libc.TLS, n int32) uintptr
	realloc  func(tls *libc.TLS, p uintptr, n int32) uintptr
	free     func(tls *libc.TLS, p uintptr)
	size     func(tls *libc.TLS, p uintptr) int32
	roundUp  func(tls *libc.TLS, n int32) int32
	start    func(tls *libc.TLS, data uintptr) int32
	shutDown func(tls *libc.TLS, data uintptr)
}

// sqliteHeap gives SQLite its heap, which it takes before anything else was
// asked of it alone.
var sqliteHeap = sync.OnceValues(func() (*heap, error) {
	h := &heap{
		roundUp:  func(_ *libc.TLS, n int32) int32 { return (n + 7) &^ 7 },
		start:    func(*libc.TLS, uintptr) int32 { return lib.SQLITE_OK },
		shutDown: func(*libc.TLS, uintptr) {},
		size:     func(_ *libc.TLS, p uintptr) int32 { return int32(memory.UintptrUsableSize(p)) },
	}
	h.malloc = func(_ *libc.TLS, n int32) uintptr {
		h.mu.Lock()
		defer h.mu.Unlock()
		p, _ := h.pages.UintptrMalloc(int(n)) // 0 is SQLite's word for no memory
		return p
	}
	h.realloc = func(_ *libc.TLS, p uintptr, n int32) uintptr {
		h.mu.Lock()
		defer h.mu.Unlock()
		p, _ = h.pages.UintptrRealloc(p, int(n))
		return p
	}
	h.free = func(_ *libc.TLS, p uintptr) {
		h.mu.Lock()
		defer h.mu.Unlock()
		_ = h.pages.UintptrFree(p) // at worst it stays mapped
	}
	// Their table, which it copies, is where no pointer of Go's leads, as the
	// translated code expects of what it has the address of.
	table, err := h.pages.Calloc(int(unsafe.Sizeof(lib.Tsqlite3_mem_methods{})))
	if err != nil {
		return nil, fmt.Errorf("give the database its memory: %w", err)
	}
	*(*lib.Tsqlite3_mem_methods)(unsafe.Pointer(&table[0])) = lib.Tsqlite3_mem_methods{
		FxMalloc: address(&h.malloc), FxRealloc: address(&h.realloc), FxFree: address(&h.free), FxSize: address(&h.size),
		FxRoundup: address(&h.roundUp), FxInit: address(&h.start), FxShutdown: address(&h.shutDown),
	}
	tls := libc.NewTLS()
	defer tls.Close()
	args := libc.NewVaList(uintptr(unsafe.Pointer(&table[0])))
	defer libc.Xfree(tls, args)
	if code := lib.Xsqlite3_config(tls, lib.SQLITE_CONFIG_MALLOC, args); code != lib.SQLITE_OK {
		return nil, fmt.Errorf("give the database its memory: %w", sqlite.ResultCode(code).ToError())
	}
	return h, h.pages.Free(table)
})

// address is the address by which translated C knows a function of Go.
func address[F any](f *F) uintptr { return *(*uintptr)(unsafe.Pointer(f)) }

// trim gives back what is free.
func (h *heap) trim() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.pages.Trim(); err != nil {
		return fmt.Errorf("give back the database's memory: %w", err)
	}
	return nil
}
