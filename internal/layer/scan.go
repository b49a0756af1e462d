package layer

import "context"

// Needle is a secret to look for. ID names it in findings.
type Needle struct {
	ID    string
	Value []byte
}

// Finding is a place where a needle was found. Path is relative to the scanned
// directory; Form says what of it holds the value ("contents", "name", "link
// target", "xattr user.x") and, where so, its encoding ("contents, base64").
type Finding struct{ Path, ID, Form string }

// Scan searches the directory dir, its files' contents, names, link targets and
// xattrs, for the needles: their exact bytes and their base64 forms, in one pass.
// The findings are sorted by path, one a path, needle and form.
func Scan(ctx context.Context, dir string, needles []Needle) ([]Finding, error) {
	panic("skeleton")
}
