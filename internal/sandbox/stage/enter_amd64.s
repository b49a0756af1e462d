#include "textflag.h"

// Enters a user namespace; see enter.go for why, and init_amd64.s for the rules
// of such code.
//
//	R12  the kernel's start block: argc, argv[0], argv[1] path of the program,
//	     argv[2…] its arguments
TEXT ·enterCode(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ SP, R12
	SUBQ $256, SP
	ANDQ $~15, SP

	MOVQ  $308, AX // setns(EnterFD, CLONE_NEWUSER)
	MOVQ  $5, DI
	MOVQ  $0x10000000, SI
	SYSCALL
	TESTQ AX, AX
	JLT   fail
	MOVQ  8(R12), AX // argv[0]
	CMPB  0(AX), $119
	JEQ   wait
	MOVQ  $116, AX // setgroups(0, nil), which a namespace may deny
	XORL  DI, DI
	XORL  SI, SI
	SYSCALL
	MOVQ  $119, AX // setresgid(0, 0, 0)
	XORL  DI, DI
	XORL  SI, SI
	XORL  DX, DX
	SYSCALL
	TESTQ AX, AX
	JLT   fail
	MOVQ  $117, AX // setresuid(0, 0, 0)
	XORL  DI, DI
	XORL  SI, SI
	XORL  DX, DX
	SYSCALL
	TESTQ AX, AX
	JLT   fail
run:
	MOVQ  $59, AX  // execve(path, argv, envp)
	MOVQ  16(R12), DI
	LEAQ  24(R12), SI
	MOVQ  0(R12), DX
	LEAQ  16(R12)(DX*8), DX
	SYSCALL

fail: // write(SyncFD, {'E', errno, errno>>8, FailEnter}, 4), exit_group(125)
	NEGQ AX
	MOVB $69, 0(SP)
	MOVB AX, 1(SP)
	SHRQ $8, AX
	MOVB AX, 2(SP)
	MOVB $117, 3(SP)
	MOVQ $1, AX
	MOVQ $3, DI
	MOVQ SP, SI
	MOVQ $4, DX
	SYSCALL

quit:
	MOVQ $231, AX
	MOVQ $125, DI
	SYSCALL

wait:
	MOVQ  $3, AX   // close(EnterFD)
	MOVQ  $5, DI
	SYSCALL
	MOVQ  $272, AX // unshare(CLONE_NEWNS)
	MOVQ  $0x20000, DI
	SYSCALL
	TESTQ AX, AX
	JLT   fail
	MOVB  $82, 0(SP) // write(SyncFD, "R", 1)
	MOVQ  $1, AX
	MOVQ  $3, DI
	MOVQ  SP, SI
	MOVQ  $1, DX
	SYSCALL
	XORL  AX, AX   // read(SyncFD, envp[0] + 15, 10)
	MOVQ  $3, DI
	MOVQ  0(R12), SI
	MOVQ  16(R12)(SI*8), SI
	ADDQ  $15, SI
	MOVQ  $10, DX
	SYSCALL
	CMPQ  AX, $10
	JNE   quit
	MOVQ  $3, AX   // close(SyncFD)
	MOVQ  $3, DI
	SYSCALL
	JMP   run

// enterEnd stands behind the code of enterCode.
TEXT ·enterEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func enterBounds() (start, end uintptr)
TEXT ·enterBounds(SB), NOSPLIT, $0-16
	LEAQ ·enterCode(SB), AX
	MOVQ AX, start+0(FP)
	LEAQ ·enterEnd(SB), AX
	MOVQ AX, end+8(FP)
	RET
