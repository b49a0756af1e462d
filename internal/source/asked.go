package source

import "sync"

// Asked is what servers said within one build of names that may move: a name means
// one thing from a build's beginning to its end. The zero value is ready. Safe for
// concurrent use.
type Asked struct {
	mu      sync.Mutex
	answers map[string]any // guarded by mu; by question
}

// recall returns an earlier answer; nil when there was none, or a is nil.
func recall[T any](a *Asked, question string) *T {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	t, _ := a.answers[question].(*T)
	return t
}

// remember keeps an answer, unless somebody was answered before, and returns what
// holds.
func remember[T any](a *Asked, question string, answer *T) *T {
	if a == nil {
		return answer
	}
	if before := recall[T](a, question); before != nil {
		return before
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers == nil {
		a.answers = map[string]any{}
	}
	a.answers[question] = answer
	return answer
}
