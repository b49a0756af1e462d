#include "textflag.h"

// The init of a sandbox; see init.go for what it does and init_arm64.s for the
// same in the other machine's words. It is copied out of the program, so it
// refers to nothing but its stack and registers:
//
//	R12  the kernel's start block: argc, argv[0] name, argv[1] "t" or "-",
//	     argv[2] path of the program, argv[3…] its arguments
//	R13  the program's pid
//	0(SP) all signals; 16(SP) wait status; 32(SP) message; 48(SP) its parts
TEXT ·initCode(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ SP, R12
	SUBQ $256, SP
	ANDQ $~15, SP

	// prctl(PR_SET_NAME, "dhow-init"), prctl(PR_SET_CHILD_SUBREAPER, 1)
	MOVQ $0x696e692d776f6864, AX
	MOVQ AX, 0(SP)
	MOVQ $0x74, AX
	MOVQ AX, 8(SP)
	MOVQ $157, AX
	MOVQ $15, DI
	MOVQ SP, SI
	SYSCALL
	MOVQ $157, AX
	MOVQ $36, DI
	MOVQ $1, SI
	SYSCALL

	// rt_sigprocmask(SIG_SETMASK, all, nil, 8)
	MOVQ $-1, AX
	MOVQ AX, 0(SP)
	MOVQ $14, AX
	MOVQ $2, DI
	MOVQ SP, SI
	XORL DX, DX
	MOVQ $8, R10
	SYSCALL

	// clone(SIGCHLD, 0, 0, 0, 0)
	MOVQ $56, AX
	MOVQ $17, DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	SYSCALL
	TESTQ AX, AX
	JLT  fail
	JEQ  child
	MOVQ AX, R13
	MOVQ $3, AX // close(SyncFD)
	MOVQ $3, DI
	SYSCALL

loop: // rt_sigtimedwait(all, nil, nil, 8)
	MOVQ $128, AX
	MOVQ SP, DI
	XORL SI, SI
	XORL DX, DX
	MOVQ $8, R10
	SYSCALL
	CMPQ AX, $0
	JLE  loop
	CMPQ AX, $17 // SIGCHLD
	JEQ  reap
	CMPQ AX, $21 // SIGTTIN
	JEQ  loop
	CMPQ AX, $22 // SIGTTOU
	JEQ  loop
	MOVQ AX, SI  // kill(program, signal)
	MOVQ R13, DI
	MOVQ $62, AX
	SYSCALL
	JMP  loop

reap: // wait4(-1, status, WNOHANG, nil)
	MOVQ $61, AX
	MOVQ $-1, DI
	LEAQ 16(SP), SI
	MOVQ $1, DX
	XORL R10, R10
	SYSCALL
	CMPQ AX, $0
	JLE  loop
	CMPQ AX, R13
	JNE  reap
	MOVL 16(SP), DI
	MOVL DI, AX
	ANDL $0x7f, AX
	JEQ  exited
	LEAL 128(AX), DI
	JMP  exit

exited:
	SHRL $8, DI
	ANDL $0xff, DI

exit: // exit_group(DI)
	MOVQ $231, AX
	SYSCALL

child: // fcntl(SyncFD, F_SETFD, FD_CLOEXEC), setpgid(0, 0)
	MOVQ $72, AX
	MOVQ $3, DI
	MOVQ $2, SI
	MOVQ $1, DX
	SYSCALL
	MOVQ $109, AX
	XORL DI, DI
	XORL SI, SI
	SYSCALL
	MOVQ 16(R12), AX
	CMPB (AX), $116 // 't'
	JNE  execute
	MOVQ $39, AX    // ioctl(0, TIOCSPGRP, getpid())
	SYSCALL
	MOVL AX, 16(SP)
	MOVQ $16, AX
	XORL DI, DI
	MOVQ $0x5410, SI
	LEAQ 16(SP), DX
	SYSCALL

execute: // rt_sigprocmask(SIG_SETMASK, none, nil, 8), execve(path, argv, envp)
	MOVQ $0, 0(SP)
	MOVQ $14, AX
	MOVQ $2, DI
	MOVQ SP, SI
	XORL DX, DX
	MOVQ $8, R10
	SYSCALL
	MOVQ $59, AX
	MOVQ 24(R12), DI
	LEAQ 32(R12), SI
	MOVQ 0(R12), DX
	LEAQ 16(R12)(DX*8), DX
	SYSCALL

fail: // writev(SyncFD, {{'E', errno, errno>>8, FailExec}, path}, 2), exit_group(125)
	NEGQ AX
	MOVB $69, 32(SP)
	MOVB AX, 33(SP)
	SHRQ $8, AX
	MOVB AX, 34(SP)
	MOVB $105, 35(SP)
	LEAQ 32(SP), AX
	MOVQ AX, 48(SP)
	MOVQ $4, 56(SP)
	MOVQ 24(R12), AX
	MOVQ AX, 64(SP)

length:
	CMPB (AX), $0
	JEQ  report
	INCQ AX
	JMP  length

report:
	SUBQ 64(SP), AX
	MOVQ AX, 72(SP)
	MOVQ $20, AX
	MOVQ $3, DI
	LEAQ 48(SP), SI
	MOVQ $2, DX
	SYSCALL
	MOVQ $125, DI
	JMP  exit

// initEnd stands behind the code of initCode.
TEXT ·initEnd(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func initBounds() (start, end uintptr)
TEXT ·initBounds(SB), NOSPLIT, $0-16
	LEAQ ·initCode(SB), AX
	MOVQ AX, start+0(FP)
	LEAQ ·initEnd(SB), AX
	MOVQ AX, end+8(FP)
	RET
