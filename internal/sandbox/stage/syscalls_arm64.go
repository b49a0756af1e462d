package stage

const (
	sysSetns    = 268
	sysSeccomp  = 277
	sysExecveat = 281
)
