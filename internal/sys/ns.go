package sys

import (
	"os"
	"strings"
	"sync"
)

// InUserNS tells whether the process lives in a user namespace other than the
// machine's first one, where overlay mounts need userxattr and device nodes
// cannot be made. A map that covers all ids onto themselves counts as the
// first namespace, as the kernel gives no other sign (user_namespaces(7)).
func InUserNS() bool { return inUserNS() }

// inUserNS asks once: a process with threads, as Go's have, cannot enter one.
var inUserNS = sync.OnceValue(func() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // no /proc or a kernel without user namespaces
	}
	return !isIdentityMap(string(data))
})

// isIdentityMap recognises the one line of the initial user namespace.
func isIdentityMap(uidMap string) bool {
	f := strings.Fields(uidMap)
	return len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}
