package sandbox

// UserNS says how the program stands towards user namespaces.
type UserNS struct {
	// Entered is true in a process that EnterUserNS re-executed.
	Entered bool
	// HostUID is the user's id outside; os.Geteuid() where Entered is false.
	HostUID int
	// Warning is not empty when only one id could be mapped: a sentence that
	// says what cannot work and what to install.
	Warning string
}

// EnterUserNS makes an ordinary user root of a user namespace of its own. It
// returns at once for uid 0 and in the re-executed program; otherwise it
// re-executes the program with the same arguments inside new user and mount
// namespaces and does not return: the process left outside only passes
// signals in and the exit code out. Call it first in main, before any other
// goroutine or file matters.
//
// An error says why this machine lets an ordinary user have no namespace.
func EnterUserNS() (UserNS, error) { panic("not written yet") }
