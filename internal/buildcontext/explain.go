package buildcontext

import (
	"context"
	"io"
)

// Explanation says for each path of a context whether it takes part, and which
// rule decided.
type Explanation struct {
	Dir    string  `json:"directory"`
	Totals Totals  `json:"totals"`
	Items  []*Item `json:"items"`
}

// Item is one line of an Explanation.
type Item struct {
	Path string `json:"path"`
}

// Explain walks dir as a build with these rules (nil: none) would.
func Explain(ctx context.Context, dir string, rules *Rules) (Explanation, error) {
	panic("not written yet")
}

// WriteText writes the explanation for a person.
func (e Explanation) WriteText(w io.Writer) error { panic("not written yet") }

// WriteJSON writes the explanation as one JSON document.
func (e Explanation) WriteJSON(w io.Writer) error { panic("not written yet") }
