package sandbox

import (
	"fmt"
	"os"
	"os/exec"

	"dhow/internal/sys"

	"github.com/moby/profiles/apparmor"
)

// AppArmor is a security module that some kernels have: a profile, loaded by
// name, says what a program may do beside all other rules. It stands in the spec
// as Process.ApparmorProfile; the stage asks the kernel for it before it enters
// anything, and gets it when it executes the program.

// DefaultProfile is the name under which docker's default profile is loaded for
// ours: as docker does with its own, into the kernel and nowhere else.
const DefaultProfile = "dhow-default"

// unconfined is no profile.
const unconfined = "unconfined"

// HasAppArmor tells whether programs can be confined by AppArmor here.
func HasAppArmor() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(data) > 0 && data[0] == 'Y' && exists("/sys/kernel/security/apparmor")
}

// LoadDefaultProfile makes sure that the default profile is loaded, and returns
// its name: "" where there is none to be had, with a sentence for the user if
// that is this machine's lack. Ordinary users cannot load one.
func LoadDefaultProfile() (name, warning string) {
	if !HasAppArmor() || sys.InUserNS() {
		return "", ""
	}
	loaded, err := apparmor.IsLoaded(DefaultProfile)
	if loaded {
		return DefaultProfile, ""
	}
	if err == nil {
		if _, err = exec.LookPath("apparmor_parser"); err == nil {
			err = apparmor.InstallDefault(DefaultProfile)
		}
	}
	if err != nil {
		return "", fmt.Sprintf("containers are not confined by AppArmor: the profile %s cannot be loaded: %v", DefaultProfile, err)
	}
	return DefaultProfile, ""
}

// buildProfile passes the profile's name.
func (b *builder) buildProfile() {
	switch name := b.spec.Process.ApparmorProfile; {
	case name == "" || name == unconfined:
	case !HasAppArmor():
		b.warn("%s", NoProfile(name))
	default:
		b.plan.AppArmor = name
	}
}

// NoProfile is the warning for a profile on a machine without AppArmor.
func NoProfile(name string) string {
	return fmt.Sprintf("the AppArmor profile %s is left out: this kernel has no AppArmor", name)
}
