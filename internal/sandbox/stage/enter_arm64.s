#include "textflag.h"

// Enters a user namespace: the words of enter_amd64.s for this machine.
//
//	R19  the kernel's start block: argc, argv[0], argv[1] path of the program,
//	     argv[2…] its arguments
TEXT ·enterCode(SB), NOSPLIT|NOFRAME, $0-0
	MOVD RSP, R19
	SUB  $256, RSP

	MOVD $268, R8 // setns(EnterFD, CLONE_NEWUSER)
	MOVD $5, R0
	MOVD $0x10000000, R1
	SVC
	CMP  $0, R0
	BLT  fail
	MOVD 8(R19), R0 // argv[0]
	MOVBU (R0), R0
	CMP  $119, R0
	BEQ  wait
	MOVD $159, R8 // setgroups(0, nil), which a namespace may deny
	MOVD $0, R0
	MOVD $0, R1
	SVC
	MOVD $149, R8 // setresgid(0, 0, 0)
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	SVC
	CMP  $0, R0
	BLT  fail
	MOVD $147, R8 // setresuid(0, 0, 0)
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	SVC
	CMP  $0, R0
	BLT  fail
run:
	MOVD $221, R8 // execve(path, argv, envp)
	MOVD 16(R19), R0
	ADD  $24, R19, R1
	MOVD 0(R19), R2
	LSL  $3, R2
	ADD  R19, R2
	ADD  $16, R2
	SVC

fail: // write(SyncFD, {'E', errno, errno>>8, FailEnter}, 4), exit_group(125)
	NEG  R0, R0
	MOVD $69, R1
	MOVB R1, 0(RSP)
	MOVB R0, 1(RSP)
	LSR  $8, R0
	MOVB R0, 2(RSP)
	MOVD $117, R1
	MOVB R1, 3(RSP)
	MOVD $64, R8
	MOVD $3, R0
	MOVD RSP, R1
	MOVD $4, R2
	SVC

quit:
	MOVD $94, R8
	MOVD $125, R0
	SVC

wait:
	MOVD $57, R8  // close(EnterFD)
	MOVD $5, R0
	SVC
	MOVD $97, R8  // unshare(CLONE_NEWNS)
	MOVD $0x20000, R0
	SVC
	CMP  $0, R0
	BLT  fail
	MOVD $82, R1  // write(SyncFD, "R", 1)
	MOVB R1, 0(RSP)
	MOVD $64, R8
	MOVD $3, R0
	MOVD RSP, R1
	MOVD $1, R2
	SVC
	MOVD $63, R8  // read(SyncFD, envp[0] + 15, 10)
	MOVD 0(R19), R1
	LSL  $3, R1
	ADD  R19, R1
	MOVD 16(R1), R1
	ADD  $15, R1
	MOVD $3, R0
	MOVD $10, R2
	SVC
	CMP  $10, R0
	BNE  quit
	MOVD $57, R8  // close(SyncFD)
	MOVD $3, R0
	SVC
	B    run

// enterEnd stands behind the code of enterCode.
TEXT ·enterEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func enterBounds() (start, end uintptr)
TEXT ·enterBounds(SB), NOSPLIT, $0-16
	MOVD $·enterCode(SB), R0
	MOVD R0, start+0(FP)
	MOVD $·enterEnd(SB), R0
	MOVD R0, end+8(FP)
	RET
