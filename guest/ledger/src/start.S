# Entry in S-mode from the SBI: a0 = hart, a1 = device tree. Paging is off and stays off,
# and sstatus.SIE stays 0: interrupts only end `wfi`, they never trap. What traps is a
# fault of this program.

    .section .text.start, "ax"
    .globl _start
_start:
    csrw sie, zero
    csrci sstatus, 2
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la sp, stack_top
    la t0, trap_entry
    csrw stvec, t0
    la t0, bss_start
    la t1, bss_end
1:  bgeu t0, t1, 2f
    sd zero, 0(t0)
    addi t0, t0, 8
    j 1b
2:  call guest_main

    .balign 4
trap_entry:
    la sp, stack_top
    csrr a0, scause
    csrr a1, sepc
    csrr a2, stval
    call fatal_trap

    .section .bss.stack, "aw", @nobits
    .balign 16
    .space 32768
stack_top:
