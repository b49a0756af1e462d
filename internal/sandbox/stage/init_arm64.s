#include "textflag.h"

// The init of a sandbox: the words of init_amd64.s for this machine.
//
//	R19  the kernel's start block: argc, argv[0] name, argv[1] "t" or "-",
//	     argv[2] path of the program, argv[3…] its arguments
//	R20  the program's pid
//	0(RSP) all signals; 16(RSP) wait status; 32(RSP) message; 48(RSP) its parts
TEXT ·initCode(SB), NOSPLIT|NOFRAME, $0-0
	MOVD RSP, R19
	SUB  $256, RSP

	// prctl(PR_SET_NAME, "dhow-init"), prctl(PR_SET_CHILD_SUBREAPER, 1)
	MOVD $0x696e692d776f6864, R0
	MOVD R0, 0(RSP)
	MOVD $0x74, R0
	MOVD R0, 8(RSP)
	MOVD $167, R8
	MOVD $15, R0
	MOVD RSP, R1
	SVC
	MOVD $167, R8
	MOVD $36, R0
	MOVD $1, R1
	SVC

	// rt_sigprocmask(SIG_SETMASK, all, nil, 8)
	MOVD $-1, R0
	MOVD R0, 0(RSP)
	MOVD $135, R8
	MOVD $2, R0
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC

	// clone(SIGCHLD, 0, 0, 0, 0)
	MOVD $220, R8
	MOVD $17, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	SVC
	CMP  $0, R0
	BLT  fail
	BEQ  child
	MOVD R0, R20
	MOVD $57, R8 // close(SyncFD)
	MOVD $3, R0
	SVC

loop: // rt_sigtimedwait(all, nil, nil, 8)
	MOVD $137, R8
	MOVD RSP, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	CMP  $0, R0
	BLE  loop
	CMP  $17, R0 // SIGCHLD
	BEQ  reap
	CMP  $21, R0 // SIGTTIN
	BEQ  loop
	CMP  $22, R0 // SIGTTOU
	BEQ  loop
	MOVD R0, R1  // kill(program, signal)
	MOVD R20, R0
	MOVD $129, R8
	SVC
	B    loop

reap: // wait4(-1, status, WNOHANG, nil)
	MOVD $260, R8
	MOVD $-1, R0
	ADD  $16, RSP, R1
	MOVD $1, R2
	MOVD $0, R3
	SVC
	CMP  $0, R0
	BLE  loop
	CMP  R20, R0
	BNE  reap
	MOVWU 16(RSP), R1
	AND  $0x7f, R1, R0
	CBZ  R0, exited
	ADD  $128, R0
	B    exit

exited:
	LSR $8, R1, R0
	AND $0xff, R0

exit: // exit_group(R0)
	MOVD $94, R8
	SVC

child: // fcntl(SyncFD, F_SETFD, FD_CLOEXEC), setpgid(0, 0)
	MOVD $25, R8
	MOVD $3, R0
	MOVD $2, R1
	MOVD $1, R2
	SVC
	MOVD $154, R8
	MOVD $0, R0
	MOVD $0, R1
	SVC
	MOVD 16(R19), R0
	MOVBU (R0), R0
	CMP  $116, R0 // 't'
	BNE  execute
	MOVD $172, R8 // ioctl(0, TIOCSPGRP, getpid())
	SVC
	MOVW R0, 16(RSP)
	MOVD $29, R8
	MOVD $0, R0
	MOVD $0x5410, R1
	ADD  $16, RSP, R2
	SVC

execute: // rt_sigprocmask(SIG_SETMASK, none, nil, 8), execve(path, argv, envp)
	MOVD ZR, 0(RSP)
	MOVD $135, R8
	MOVD $2, R0
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	SVC
	MOVD $221, R8
	MOVD 24(R19), R0
	ADD  $32, R19, R1
	MOVD 0(R19), R2
	LSL  $3, R2
	ADD  R19, R2
	ADD  $16, R2
	SVC

fail: // writev(SyncFD, {{'E', errno, errno>>8, FailExec}, path}, 2), exit_group(125)
	NEG   R0, R0
	MOVD  $69, R1
	MOVB  R1, 32(RSP)
	MOVB  R0, 33(RSP)
	LSR   $8, R0
	MOVB  R0, 34(RSP)
	MOVD  $105, R1
	MOVB  R1, 35(RSP)
	ADD   $32, RSP, R0
	MOVD  R0, 48(RSP)
	MOVD  $4, R0
	MOVD  R0, 56(RSP)
	MOVD  24(R19), R0
	MOVD  R0, 64(RSP)
	MOVD  R0, R1

length:
	MOVBU (R1), R2
	CBZ   R2, report
	ADD   $1, R1
	B     length

report:
	SUB  R0, R1
	MOVD R1, 72(RSP)
	MOVD $66, R8
	MOVD $3, R0
	ADD  $48, RSP, R1
	MOVD $2, R2
	SVC
	MOVD $125, R0
	B    exit

// initEnd stands behind the code of initCode.
TEXT ·initEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func initBounds() (start, end uintptr)
TEXT ·initBounds(SB), NOSPLIT, $0-16
	MOVD $·initCode(SB), R0
	MOVD R0, start+0(FP)
	MOVD $·initEnd(SB), R0
	MOVD R0, end+8(FP)
	RET
