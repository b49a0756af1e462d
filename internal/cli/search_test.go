package cli

import "testing"

func TestSearchTerm(t *testing.T) {
	for in, want := range map[string][2]string{
		"nginx":                  {"docker.io", "nginx"},
		"bitnami/nginx":          {"docker.io", "bitnami/nginx"},
		"ghcr.io/org/app":        {"ghcr.io", "org/app"},
		"localhost/x":            {"localhost", "x"},
		"localhost:5000/":        {"localhost:5000", ""},
		"index.docker.io/alpine": {"docker.io", "alpine"},
	} {
		if domain, term := searchTerm(in); domain != want[0] || term != want[1] {
			t.Errorf("%s: got %q in %s, want %q in %s", in, term, domain, want[1], want[0])
		}
	}
}
