package sys

import (
	"os"
	"strings"
)

// BootID names the running of the machine's kernel: what was alive under
// another one is gone. "" without procfs, where nothing here would work.
func BootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}
