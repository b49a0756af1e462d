package stage

// A user namespace can be entered by a process with a single thread alone
// (setns(2)), which a Go program never is. So the stage of a process that joins
// a container with a user namespace is executed by a few instructions that enter
// it, as its root, in front: machine code, as the init is.
//
//	argv: "dhow", path, arguments of the program…
//	SyncFD: takes a MsgError of the kind FailEnter
//	EnterFD: the namespace
//
// The same code takes an ordinary user's command into the namespace of the
// others. It then goes on, as the program, with a mount namespace of its own:
//
//	argv: "wait", path, arguments of the program with their "dhow" in front
//	SyncFD: takes MsgReady, and gives the process's own number, in ten digits,
//	        which go behind the "=" of the first variable (PIDVar)
//	EnterFD: the namespace; closed, as SyncFD is

//lint:ignore U1000 the bounds of the code, which assembly takes the addresses of
func enterCode()

//lint:ignore U1000 the bounds of the code, which assembly takes the addresses of
func enterEnd()

func enterBounds() (start, end uintptr)

// EnterAndWait is argv[0] for the second.
const EnterAndWait = "wait"

// EnterFD is the descriptor of the user namespace to enter.
const EnterFD = MinFD

// EnterCode is that machine code, which starts at its first byte.
func EnterCode() []byte { return machineCode(enterBounds()) }
