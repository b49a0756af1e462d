package creds

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"
)

// maxFile is the size in bytes up to which a file of logins is read.
const maxFile = 4 << 20

// entry is a login in a file, in the fields that docker and Podman use.
type entry struct {
	Auth          string `json:"auth,omitempty"` // base64 of user:password
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

// login decodes the entry; ok is false when it is empty, which is how a login
// is marked that a helper keeps.
func (e entry) login() (l Login, ok bool, err error) {
	l = Login{User: e.Username, Secret: e.Password}
	if e.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(e.Auth)
		user, secret, colon := strings.Cut(string(raw), ":")
		if err != nil || !colon {
			return Login{}, false, errors.New(`"auth" is not the base64 of user:password`)
		}
		l = Login{User: user, Secret: strings.Trim(secret, "\x00")}
	}
	if e.IdentityToken != "" {
		l = Login{User: TokenUser, Secret: e.IdentityToken, Name: l.User}
	}
	return l, l.User != "", nil
}

// newEntry is the entry of a login.
func newEntry(l Login) entry {
	if l.User == TokenUser {
		return entry{Auth: base64.StdEncoding.EncodeToString([]byte(l.Who() + ":")), IdentityToken: l.Secret}
	}
	return entry{Auth: base64.StdEncoding.EncodeToString([]byte(l.User + ":" + l.Secret))}
}

// authFile is a file of logins, docker's config.json or Podman's auth.json.
type authFile struct {
	path string
	data []byte

	Auths       map[string]entry  `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// readAuthFile reads a file of logins; one that does not exist is empty.
// ErrInvalid, with the line, when it is malformed.
func readAuthFile(path string) (*authFile, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return parseAuthFile(path, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("read logins: %w", err)
	}
	defer f.Close()
	var b bytes.Buffer
	if n, err := b.ReadFrom(&limited{f, maxFile}); err != nil {
		return nil, fmt.Errorf("read logins: %s: after %d bytes: %w", path, n, err)
	}
	return parseAuthFile(path, b.Bytes())
}

// limited fails when more than n bytes come.
type limited struct {
	f *os.File
	n int
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.f.Read(p)
	if l.n -= n; l.n < 0 {
		return 0, errdef.New(errdef.ErrInvalid, "it is longer than %d bytes", maxFile)
	}
	return n, err
}

func parseAuthFile(path string, data []byte) (*authFile, error) {
	f := &authFile{path: path, data: data}
	if len(bytes.TrimSpace(data)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(data, f); err != nil {
		return nil, f.malformed(offset(err, len(data)), err)
	}
	return f, nil
}

// offset is how far into the file a decoder's error is, in bytes.
func offset(err error, all int) int {
	var syntax *json.SyntaxError
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return int(syntax.Offset)
	case errors.As(err, &mistyped):
		return int(mistyped.Offset)
	}
	return all
}

func (f *authFile) malformed(at int, err error) error {
	line := 1 + bytes.Count(f.data[:min(max(at-1, 0), len(f.data))], []byte("\n"))
	return errdef.WithHint(errdef.New(errdef.ErrInvalid, "%s: line %d: %w", f.path, line, err),
		"mend the file; it was left as it is")
}

// entry returns the login that the file has under exactly that key.
func (f *authFile) entry(key string) (Login, bool, error) {
	l, ok, err := f.Auths[key].login()
	if err != nil {
		quoted, _ := json.Marshal(key) // a string always has a JSON form
		err = f.malformed(1+bytes.Index(f.data, quoted), fmt.Errorf("auths: %s: %w", key, err))
	}
	return l, ok, err
}

// keys are the file's keys that stand for the server.
func (f *authFile) keys(profile string, s Server) []string {
	var out []string
	if key := s.key(profile); f.has(key) {
		out = append(out, key)
	}
	for key := range f.Auths {
		if p, got := parseKey(key); p == profile && got == s && key != s.key(profile) {
			out = append(out, key)
		}
	}
	return out
}

func (f *authFile) has(key string) bool {
	_, ok := f.Auths[key]
	return ok
}

// helper is the credential helper that keeps the server's logins; "" for none.
func (f *authFile) helper(s Server) string {
	for key, name := range f.CredHelpers {
		if _, got := parseKey(key); got.Domain == s.Domain && (got.Path == "" || got == s) {
			return name
		}
	}
	return f.CredsStore
}

// edit changes a file of logins under its lock: f sees what is in it now, and
// the parts that it does not change stay, those that this program does not know
// among them. A malformed file is reported and left as it is.
func edit(ctx context.Context, path string, change func(now *authFile, doc *document) error) error {
	// A link stays one: the file may be kept elsewhere on purpose.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write logins: %w", err)
	}
	lock, err := sys.LockFile(ctx, path+".dhow-lock", true)
	if err != nil {
		return fmt.Errorf("write logins: %w", err)
	}
	defer lock.RemoveOnUnlock().Unlock()
	now, err := readAuthFile(path)
	if err != nil {
		return err
	}
	doc := &document{top: map[string]json.RawMessage{}}
	if len(bytes.TrimSpace(now.data)) > 0 {
		if err := json.Unmarshal(now.data, &doc.top); err != nil {
			return now.malformed(offset(err, len(now.data)), err)
		}
	}
	if err := change(now, doc); err != nil || !doc.changed {
		return err
	}
	data, err := json.MarshalIndent(doc.top, "", "\t")
	if err == nil {
		err = sys.WriteFileAtomic(path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write logins: %w", err)
	}
	return nil
}

// document is a file's JSON of which only parts are understood.
type document struct {
	top     map[string]json.RawMessage
	changed bool
}

// set puts value under top[section][key]; nil removes it. The section goes when
// it is empty.
func (d *document) set(section, key string, value any) error {
	name := section
	for have := range d.top { // as the decoder does, which knows no case
		if strings.EqualFold(have, section) {
			name = have
		}
	}
	m := map[string]json.RawMessage{}
	if raw, ok := d.top[name]; ok {
		if err := json.Unmarshal(raw, &m); err != nil {
			return err
		}
		if m == nil { // it was null
			m = map[string]json.RawMessage{}
		}
	}
	if value == nil {
		delete(m, key)
	} else {
		raw, err := json.Marshal(value)
		if err != nil {
			return err
		}
		m[key] = raw
	}
	d.changed = true
	if len(m) == 0 {
		delete(d.top, name)
		return nil
	}
	raw, err := json.Marshal(m)
	d.top[name] = raw
	return err
}
