package flags

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Refuse adds docker's flags that dhow does not have: naming one is an
// error that says why, but for a value that asks for nothing ("--sbom=false").
// A name may have its letter behind a comma.
func Refuse(fl *pflag.FlagSet, reasons map[string]string) {
	for name, why := range reasons {
		name, letter, _ := strings.Cut(name, ",")
		f := fl.VarPF(&refused{name: name, why: why}, name, letter, "")
		f.Hidden = true
		f.NoOptDefVal = "true"
	}
}

type refused struct{ name, why string }

func (r *refused) String() string { return "" }
func (r *refused) Type() string   { return "" }
func (r *refused) Set(v string) error {
	if off, err := strconv.ParseBool(v); err == nil && !off {
		return nil
	}
	return &RefusedError{fmt.Sprintf("dhow has no --%s: %s", r.name, r.why)}
}

// Grant adds flags that ask for what is so anyway; only their opposites are
// refused, with the reason.
func Grant(fl *pflag.FlagSet, why string, names ...string) {
	for _, name := range names {
		f := fl.VarPF(&granted{name: name, why: why}, name, "", "")
		f.Hidden = true
		f.NoOptDefVal = "true"
	}
}

type granted struct{ name, why string }

func (g *granted) String() string { return "true" }
func (g *granted) Type() string   { return "bool" }
func (g *granted) Set(v string) error {
	on, err := strconv.ParseBool(v)
	if err == nil && !on {
		return &RefusedError{fmt.Sprintf("dhow has no --%s=false: %s", g.name, g.why)}
	}
	return err
}

// RefusedError is why a flag was refused. It is shown as it is: what was written behind the flag is no matter.
type RefusedError struct{ msg string }

func (e *RefusedError) Error() string { return e.msg }
