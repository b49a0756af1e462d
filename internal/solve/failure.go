package solve

// Failure is why an operation failed, with what was there at the time, for those
// who want to look into it. Operations return one only where somebody may.
type Failure struct {
	// Inputs are the operation's inputs, for a command those of its mounts; nil
	// for an empty tree.
	Inputs []*Result
	// Mounts are the trees as the failure left them: of a command's mounts, or what
	// each of a file operation's actions made; nil where there is none.
	Mounts []*Result
	// Action is which of a file operation's actions failed, and Input which input
	// could not be read for the key; -1 for none.
	Action, Input int
	Err           error
}

// Error is the cause's text; where a key could not be made, it says so in the
// words that people know from BuildKit.
func (f *Failure) Error() string {
	if f.Input >= 0 {
		return "failed to compute cache key: " + f.Err.Error()
	}
	return f.Err.Error()
}

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }
