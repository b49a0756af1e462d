package stage

const (
	sysSetns    = 308
	sysSeccomp  = 317
	sysExecveat = 322
)
