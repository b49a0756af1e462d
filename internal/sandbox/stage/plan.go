package stage

// Plan is a sandbox in the stage's terms: no names to look up, every host
// object already open. Descriptors are numbers in the stage; -1 is none.
type Plan struct {
	Path      string // of the program, for RoleUserNS; else found from Args[0]
	Args, Env []string
	Cwd       string

	UID, GID uint32
	Groups   []uint32
	Umask    int64 // -1 keeps 0022

	NoNewPrivs bool
	AppArmor   string // profile; "" is none
	// Capability sets, bit n for capability n of capability.h.
	Bounding, Effective, Permitted, Inheritable, Ambient uint64

	OOMScore     int64 // NoOOMScore leaves it
	Rlimits      []Rlimit
	Filter       []byte // struct sock_filter array in native order; empty is none
	FilterFlags  uint64 // SECCOMP_FILTER_FLAG_*
	DeathSignal  uint64
	InUserNS     bool // ids may be unmapped, setgroups may be denied
	Join         []Join
	Inside       bool // Join has the mount namespace, too: the root is there already
	NewCgroupNS  bool
	Cgroups      []int // files of cgroups of version 1 that take a thread in: before NewCgroupNS, or last if Inside
	WaitReady    bool  // let the parent do its last before the program is executed
	NewUTS       bool
	Hostname     string
	Domainname   string
	LoopbackUp   bool
	Sysctls      []Setting
	Root         int // detached mount that becomes /
	RootReadOnly bool
	Mounts       []Mount
	Devices      []Device
	Links        []Setting // symbolic links to make: Name → Value
	Masked       []string
	Null         int // detached mount of the null device, read-only, to mask files with
	ReadOnly     []string

	TTY        bool
	Rows, Cols uint64
	OwnStdio   bool    // give pipes and FIFOs among 0, 1 and 2 to UID
	NullStdio  [3]bool // open these of 0, 1 and 2 as /dev/null inside
	Init       bool
	InitExe    int // the init process's program, for Init
}

// NoOOMScore as Plan.OOMScore leaves the score as it is.
const NoOOMScore = -10000

// Join is a namespace to enter, or, where FD is a pidfd, those of a process.
type Join struct {
	FD   int
	Flag uint64 // CLONE_NEW*; of a pidfd any number of them
}

// Rlimit is one setrlimit(2).
type Rlimit struct {
	Resource   uint64
	Name       string
	Soft, Hard uint64
}

// Setting is a name and a value: a sysctl, a mount option, a link and its
// target.
type Setting struct{ Name, Value string }

// Mount attaches the mount in FD, or a new one of the file system Type, at
// Dest.
type Mount struct {
	Dest string
	FD   int
	// Fallback replaces a new file system that the kernel refuses to mount in
	// this user namespace (sysfs of a foreign network namespace).
	Fallback int
	Type     string
	Options  []Setting // for fsconfig(2); an empty Value is a flag
	Attrs    uint64    // MOUNT_ATTR_* of a new file system
	// NoLinks refuses a Dest with symbolic links in it, for the file systems
	// that later steps trust to be at their place.
	NoLinks bool
}

// Device attaches the device node in FD at Path, or makes one there, in a file
// system of the sandbox's own.
type Device struct {
	Path     string
	FD       int
	Mode     uint32 // type and permissions of a new node
	Number   uint64 // major and minor
	UID, GID uint32
}

// Encode gives the form that a stage reads from PlanFD.
func (p *Plan) Encode() []byte {
	c := &coder{encode: true, buf: make([]byte, 0, 16<<10)}
	p.code(c)
	return c.buf
}

func decode(data []byte) (*Plan, bool) {
	c := &coder{buf: data}
	p := &Plan{}
	p.code(c)
	return p, !c.bad && c.off == len(c.buf)
}

// code walks all fields in one order for both directions, so that writer and
// reader cannot disagree.
func (p *Plan) code(c *coder) {
	c.str(&p.Path)
	c.strs(&p.Args)
	c.strs(&p.Env)
	c.str(&p.Cwd)
	c.str(&p.AppArmor)
	code32(c, &p.UID)
	code32(c, &p.GID)
	list(c, &p.Groups, code32)
	code64(c, &p.Umask)
	code64(c, &p.OOMScore)
	c.flags(&p.NoNewPrivs, &p.InUserNS, &p.NewCgroupNS, &p.WaitReady, &p.NewUTS, &p.LoopbackUp,
		&p.RootReadOnly, &p.TTY, &p.OwnStdio, &p.Init, &p.Inside, &p.NullStdio[0], &p.NullStdio[1], &p.NullStdio[2])
	for _, v := range []*uint64{&p.Bounding, &p.Effective, &p.Permitted, &p.Inheritable, &p.Ambient,
		&p.FilterFlags, &p.DeathSignal, &p.Rows, &p.Cols} {
		c.u64(v)
	}
	list(c, &p.Rlimits, func(c *coder, r *Rlimit) {
		c.u64(&r.Resource)
		c.str(&r.Name)
		c.u64(&r.Soft)
		c.u64(&r.Hard)
	})
	c.bytes(&p.Filter)
	list(c, &p.Cgroups, code64)
	list(c, &p.Join, func(c *coder, j *Join) { code64(c, &j.FD); c.u64(&j.Flag) })
	c.str(&p.Hostname)
	c.str(&p.Domainname)
	list(c, &p.Sysctls, codePair)
	list(c, &p.Links, codePair)
	code64(c, &p.Root)
	code64(c, &p.InitExe)
	code64(c, &p.Null)
	list(c, &p.Mounts, codeMount)
	list(c, &p.Devices, codeDevice)
	c.strs(&p.Masked)
	c.strs(&p.ReadOnly)
}

func codeMount(c *coder, m *Mount) {
	c.str(&m.Dest)
	code64(c, &m.FD)
	code64(c, &m.Fallback)
	c.str(&m.Type)
	list(c, &m.Options, codePair)
	c.u64(&m.Attrs)
	c.flags(&m.NoLinks)
}

func codeDevice(c *coder, d *Device) {
	c.str(&d.Path)
	code64(c, &d.FD)
	code32(c, &d.Mode)
	c.u64(&d.Number)
	code32(c, &d.UID)
	code32(c, &d.GID)
}

func codePair(c *coder, s *Setting) { c.str(&s.Name); c.str(&s.Value) }

func code32(c *coder, v *uint32) {
	x := uint64(*v)
	c.u64(&x)
	*v = uint32(x)
}

func code64[T ~int | ~int64](c *coder, v *T) {
	x := uint64(int64(*v))
	c.u64(&x)
	*v = T(int64(x))
}

// coder appends to buf or consumes it. Numbers are base 128, low bits first;
// strings and lists have their length in front.
type coder struct {
	encode bool
	buf    []byte
	off    int
	bad    bool
}

func (c *coder) u64(v *uint64) {
	if c.encode {
		x := *v
		for x >= 0x80 {
			c.buf = append(c.buf, byte(x)|0x80)
			x >>= 7
		}
		c.buf = append(c.buf, byte(x))
		return
	}
	var x uint64
	for shift := uint(0); ; shift += 7 {
		if c.off >= len(c.buf) || shift > 63 {
			c.bad = true
			*v = 0
			return
		}
		b := c.buf[c.off]
		c.off++
		x |= uint64(b&0x7f) << shift
		if b < 0x80 {
			*v = x
			return
		}
	}
}

func (c *coder) bytes(v *[]byte) {
	n := uint64(len(*v))
	c.u64(&n)
	if c.encode {
		c.buf = append(c.buf, *v...)
		return
	}
	if n > uint64(len(c.buf)-c.off) {
		c.bad, n = true, 0
	}
	*v = c.buf[c.off : c.off+int(n)]
	c.off += int(n)
}

func (c *coder) str(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	*v = string(b)
}

func (c *coder) flags(vs ...*bool) {
	for _, v := range vs {
		var x uint64
		if *v {
			x = 1
		}
		c.u64(&x)
		*v = x != 0
	}
}

func (c *coder) strs(v *[]string) { list(c, v, (*coder).str) }

// list codes the length and then each element.
func list[T any](c *coder, v *[]T, elem func(*coder, *T)) {
	n := uint64(len(*v))
	c.u64(&n)
	if !c.encode {
		if n > uint64(len(c.buf)-c.off) { // every element takes a byte or more
			c.bad, n = true, 0
		}
		*v = make([]T, n)
	}
	for i := range *v {
		elem(c, &(*v)[i])
	}
}
