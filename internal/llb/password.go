package llb

import "regexp"

// userinfo is what stands between the scheme and the host of an address.
var userinfo = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)([^/@\s:]*):[^/@\s]+@`)

// HidePasswords replaces the passwords of the addresses in a text for people:
// it is shown, and kept in records.
func HidePasswords(text string) string { return userinfo.ReplaceAllString(text, "$1$2:xxxxx@") }
