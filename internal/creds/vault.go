package creds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"filippo.io/age"
)

// vaultName is the file of the encrypted store, in docker's configuration
// directory.
const vaultName = "dhow-credentials.json"

// vault is the encrypted store. Each login is sealed by itself to an age
// recipient (age-encryption.org/v1, X25519) that stands in the file, so that
// logging in needs no key. What opens them is an identity made for this file
// alone, which is kept under a lock: see locks.go. A sealed login repeats its
// key: one that was moved under another registry's name does not open.
type vault struct {
	path       string
	env        func(string) string
	passphrase func(again bool) (string, error)

	mu       sync.Mutex
	identity *age.X25519Identity // guarded by mu; nil until it was needed
	made     string              // guarded by mu; the lock that this process used last
	renewed  bool                // guarded by mu; the old identity was lost
}

// vaultFile is the store on the disk.
type vaultFile struct {
	Version   int                    `json:"version"` // 1
	Recipient string                 `json:"recipient"`
	Lock      lock                   `json:"lock"`
	Logins    map[string]sealedLogin `json:"logins"`
}

// sealedLogin is a login in the store: the age file of a credential's JSON.
type sealedLogin struct {
	User   string `json:"user"` // whose it is; only to be shown
	Sealed []byte `json:"sealed"`
}

// read reads the file; nil when there is none.
func (v *vault) read() (*vaultFile, error) {
	data, err := os.ReadFile(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read logins: %w", err)
	}
	var f vaultFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, (&authFile{path: v.path, data: data}).malformed(offset(err, len(data)), err)
	}
	if f.Version != 1 {
		return nil, errdef.WithHint(errdef.New(errdef.ErrUnsupported, "%s has version %d, want 1", v.path, f.Version), "a newer dhow wrote it")
	}
	return &f, nil
}

// get returns the login under the key.
func (v *vault) get(ctx context.Context, key string) (Login, bool, error) {
	f, err := v.read()
	if err != nil || f == nil {
		return Login{}, false, err
	}
	sealed, ok := f.Logins[key]
	if !ok {
		return Login{}, false, nil
	}
	id, err := v.unlock(ctx, f)
	if err != nil {
		return Login{}, false, fmt.Errorf("open %s: %w", v.path, err)
	}
	c, err := sealed.open(id)
	if err == nil && c.ServerURL != key {
		err = errdef.New(errdef.ErrIntegrity, "it was sealed for another registry")
	}
	if err != nil {
		return Login{}, false, fmt.Errorf("open the login for %s in %s: %w", key, v.path, err)
	}
	l := Login{User: c.Username, Secret: c.Secret}
	if l.User == TokenUser {
		l.Name = sealed.User
	}
	return l, true, nil
}

func (s sealedLogin) open(id *age.X25519Identity) (c credential, err error) {
	r, err := age.Decrypt(bytes.NewReader(s.Sealed), id)
	if err != nil {
		return c, errdef.As(errdef.ErrIntegrity, err)
	}
	return c, json.NewDecoder(io.LimitReader(r, maxHelper)).Decode(&c)
}

// seal encrypts a login to the file's recipient.
func (f *vaultFile) seal(c credential) (sealedLogin, error) {
	to, err := age.ParseX25519Recipient(f.Recipient)
	if err != nil {
		return sealedLogin{}, err
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return sealedLogin{}, err
	}
	sealed, err := encrypt(raw, to)
	return sealedLogin{Sealed: sealed}, err
}

func encrypt(raw []byte, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// unlock returns the file's identity.
func (v *vault) unlock(ctx context.Context, f *vaultFile) (*age.X25519Identity, error) {
	v.mu.Lock()
	id := v.identity
	v.mu.Unlock()
	if id != nil && id.Recipient().String() == f.Recipient {
		return id, nil
	}
	text, err := v.open(ctx, f.Lock)
	if err != nil {
		return nil, err
	}
	if id, err = age.ParseX25519Identity(text); err != nil {
		return nil, errdef.As(errdef.ErrIntegrity, err)
	}
	if id.Recipient().String() != f.Recipient {
		return nil, errdef.New(errdef.ErrIntegrity, "the key is not this store's")
	}
	v.keep(id, f.Lock.Kind, false)
	return id, nil
}

func (v *vault) keep(id *age.X25519Identity, kind string, renewed bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.identity, v.made, v.renewed = id, kind, v.renewed || renewed
}

func (v *vault) kind() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.made
}

func (v *vault) lost() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.renewed
}

// change edits the file under its lock; nil is no file yet. f returns what is
// to be written, or nil.
func (v *vault) change(ctx context.Context, f func(*vaultFile) (*vaultFile, error)) error {
	if err := os.MkdirAll(filepath.Dir(v.path), 0o700); err != nil {
		return err
	}
	lock, err := sys.LockFile(ctx, v.path+".lock", true)
	if err != nil {
		return err
	}
	defer lock.RemoveOnUnlock().Unlock()
	now, err := v.read()
	if err != nil {
		return err
	}
	next, err := f(now)
	if err != nil || next == nil {
		return err
	}
	data, err := json.MarshalIndent(next, "", "\t")
	if err != nil {
		return err
	}
	return sys.WriteFileAtomic(v.path, append(data, '\n'), 0o600)
}

// put stores a login. kind is the lock for a store that is made anew, "" the
// first that works.
func (v *vault) put(ctx context.Context, key string, l Login, kind string) error {
	return v.change(ctx, func(f *vaultFile) (*vaultFile, error) {
		renew := f == nil
		if f != nil && kind != "" && kind != f.Lock.Kind {
			return f, errdef.WithHint(errdef.New(errdef.ErrConflict, "%s is locked with %s already", v.path, f.Lock.Kind),
				"log out of what dhow login ls shows there and remove the file, then log in anew")
		}
		if f != nil && f.Lock.Kind == KeyKeyring {
			// The kernel forgets its keys when the machine restarts.
			_, err := v.unlock(ctx, f)
			renew = errors.Is(err, errdef.ErrNotFound)
			if err != nil && !renew {
				return nil, err
			}
		}
		if renew {
			lost := f != nil && len(f.Logins) > 0
			var err error
			if f, err = v.create(ctx, kind, lost); err != nil {
				return nil, err
			}
		} else {
			v.mu.Lock()
			v.made = f.Lock.Kind
			v.mu.Unlock()
		}
		sealed, err := f.seal(credential{ServerURL: key, Username: l.User, Secret: l.Secret})
		if err != nil {
			return nil, err
		}
		sealed.User = l.Who()
		f.Logins[key] = sealed
		return f, nil
	})
}

// create makes an empty store and a lock for it.
func (v *vault) create(ctx context.Context, kind string, lost bool) (*vaultFile, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	lock, err := v.newLock(ctx, kind, id.String())
	if err != nil {
		return nil, err
	}
	v.keep(id, lock.Kind, lost)
	return &vaultFile{Version: 1, Recipient: id.Recipient().String(), Lock: lock, Logins: map[string]sealedLogin{}}, nil
}

// erase removes a login; false when there was none.
func (v *vault) erase(ctx context.Context, key string) (had bool, err error) {
	if f, err := v.read(); err != nil || f == nil {
		return false, err
	}
	err = v.change(ctx, func(f *vaultFile) (*vaultFile, error) {
		if f == nil {
			return nil, nil
		}
		if _, had = f.Logins[key]; !had {
			return nil, nil
		}
		delete(f.Logins, key)
		return f, nil
	})
	return had, err
}

// list returns the users by key.
func (v *vault) list(context.Context) (map[string]string, error) {
	f, err := v.read()
	if err != nil || f == nil {
		return nil, err
	}
	out := map[string]string{}
	for key, l := range f.Logins {
		out[key] = l.User
	}
	return out, nil
}
