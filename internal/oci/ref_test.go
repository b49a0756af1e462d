package oci

import (
	"regexp"
	"strings"
	"testing"
)

func TestIDsAndTags(t *testing.T) {
	id := regexp.MustCompile(`^(?:sha256:)?[0-9a-f]{4,64}$`)
	tag := regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	for _, s := range []string{
		"", "abc", "abcd", "ABCD", "sha256:", "sha256:abc", "sha256:abcd", "sha256:sha256:abcd", "abcg", "ab cd", "abcd\n",
		"_", ".a", "-a", "a.b-c_D9", "a/b", "a:b", "ä", strings.Repeat("a", 64), strings.Repeat("a", 65), strings.Repeat("a", 128), strings.Repeat("a", 129),
	} {
		if got, want := IsID(s), id.MatchString(s); got != want {
			t.Errorf("IsID(%q): got %v, want %v", s, got, want)
		}
		if got, want := ValidTag(s), tag.MatchString(s); got != want {
			t.Errorf("ValidTag(%q): got %v, want %v", s, got, want)
		}
	}
}
