package sandbox

import (
	"fmt"
	"strings"

	"dhow/internal/errdef"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capabilityNames are the capabilities by number (include/uapi/linux/capability.h
// of Linux 6.18), without "CAP_".
const capabilityNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP " +
	"LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO " +
	"SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE " +
	"AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON " +
	"BPF CHECKPOINT_RESTORE"

// Capabilities lists every capability by number, as a runtime spec names them
// ("CAP_CHOWN").
func Capabilities() []string {
	names := strings.Fields(capabilityNames)
	for i, n := range names {
		names[i] = "CAP_" + n
	}
	return names
}

// buildCaps turns the capability names into sets, without those that the
// caller lacks itself.
func (b *builder) buildCaps() error {
	have, err := ownCaps()
	if err != nil {
		return err
	}
	c := b.spec.Process.Capabilities
	if c == nil {
		c = &specs.LinuxCapabilities{}
	}
	if b.ownUserNS {
		have = ^uint64(0) // a new user namespace has them all
	}
	bits := map[string]uint64{}
	for i, n := range Capabilities() {
		bits[n] = 1 << i
	}
	missing := map[string]bool{}
	for _, set := range []struct {
		names []string
		into  *uint64
	}{
		{c.Bounding, &b.plan.Bounding}, {c.Effective, &b.plan.Effective}, {c.Permitted, &b.plan.Permitted},
		{c.Inheritable, &b.plan.Inheritable}, {c.Ambient, &b.plan.Ambient},
	} {
		for _, n := range set.names {
			bit, ok := bits[n]
			if !ok {
				return errdef.New(errdef.ErrInvalid, "start the sandbox: unknown capability %s", n)
			}
			if bit&have == 0 {
				missing[n] = true
			}
			*set.into |= bit & have
		}
	}
	if len(c.Bounding) == len(bits) {
		return nil // all there are: those that exist here are meant
	}
	for _, n := range c.Bounding {
		if missing[n] {
			b.warn("%s is left out: this process does not have it itself", n)
		}
	}
	return nil
}

// ownCaps is the permitted set of the calling thread.
func ownCaps() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("read the capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// OwnCapabilities lists those that this process may give, as a runtime spec
// names them.
func OwnCapabilities() ([]string, error) {
	have, err := ownCaps()
	if err != nil {
		return nil, err
	}
	var names []string
	for i, n := range Capabilities() {
		if have>>i&1 != 0 {
			names = append(names, n)
		}
	}
	return names, nil
}
