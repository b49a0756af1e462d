package supervise

import (
	"encoding/json"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// The operations of the control socket, with their arguments and results.
const (
	opStart   = "start"   // startArgs → Exit; only on the socketpair of a new supervisor
	opAttach  = "attach"  // AttachOptions → Exit
	opExec    = "exec"    // ExecOptions → Exit
	opSignal  = "signal"  // signalArgs
	opStop    = "stop"    // StopOptions
	opRestart = "restart" // StopOptions
	opWait    = "wait"    // waitArgs → Exit
	opPause   = "pause"
	opResume  = "unpause"
	opResize  = "resize"     // Size
	opRemove  = "remove"     // RemoveOptions
	opStats   = "stats"      // → docker's StatsResponse
	opPids    = "pids"       // → []int
	opRoot    = "root"       // → a descriptor, beside the result
	opProbe   = "probe"      // → health.Result
	opAwait   = "await"      // awaitArgs → *Unready
	opYield   = "yield"      // the next supervisor wants the log
	opClear   = "clear"      // remove what the log has
	opReload  = "reload"     // the record was changed
	opUpdate  = "update"     // the record was changed, its limits among it
	opConnect = "connect"    // connectArgs
	opLeave   = "disconnect" // leaveArgs
)

// request is the first frame of a connection.
type request struct {
	Op   string
	Args json.RawMessage `json:",omitempty"`
}

// AttachOptions say what a client wants of a container's first process.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	// Size is that of the client's terminal; nil is unknown.
	Size *Size
}

// Size is a terminal's, in character cells.
type Size struct{ Rows, Cols uint16 }

// startArgs begin a new supervisor's work.
type startArgs struct {
	Attach *AttachOptions // nil: answer when it runs
	// Adopt takes over what a killed supervisor left, instead of starting.
	Adopt bool
}

// ExecOptions are a further program for a running container.
type ExecOptions struct {
	Args       []string
	Env        []string // added to the container's
	Cwd        string   // "" is the container's
	User       string   // "" is the container's
	TTY        bool
	Stdin      bool
	Detach     bool // answer when it runs; nobody sees its output
	Privileged bool
	Size       *Size
}

// StopOptions say how a container is ended.
type StopOptions struct {
	Signal  string         // "" is the container's own
	Timeout *time.Duration // until SIGKILL; nil is the container's own, negative is for ever
}

type signalArgs struct{ Signal string }

type waitArgs struct{ Condition container.WaitCondition }

// awaitArgs say what is waited for; a timeout of 0 is none.
type awaitArgs struct {
	Condition container.WaitCondition
	Timeout   time.Duration
}

// connectArgs name a network that a running container is to join.
type connectArgs struct {
	Network  string
	Settings *network.EndpointSettings
}

// leaveArgs name a network that a running container is to leave.
type leaveArgs struct{ Network string }

// RemoveOptions say what goes with a container.
type RemoveOptions struct {
	Volumes  bool // anonymous ones
	Force    bool // kill it first
	KeepLogs bool // the log outlives it, see keep.go
}

// Exit is how a program ended.
type Exit struct {
	Code      int
	OOMKilled bool   `json:",omitempty"`
	Error     string `json:",omitempty"` // why it could not run, or what is not known
}
