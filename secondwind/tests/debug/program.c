/* Two harts, without an operating system, for the tests of `secondwind debug`: hart 0 adds up
 * and prints, hart 1 counts its turns. `culprit` is what writes `victim`, once. */

typedef unsigned long u64;

#define UART (*(volatile unsigned char *)0x10000000)

volatile u64 total, turns[2], victim = 7;
volatile u64 tohost __attribute__((section(".tohost")));
char stacks[2][4096] __attribute__((aligned(16)));

__attribute__((noinline)) void add(u64 number)
{
    total += number;
}

__attribute__((noinline)) void culprit(u64 value)
{
    victim = value;
}

static void print(const char *text)
{
    while (*text)
        UART = *text++;
}

__attribute__((noreturn)) void program(u64 hart)
{
    if (hart != 0)
        for (;;)
            turns[1]++;
    for (u64 round = 1; round <= 20; round++) {
        add(round);
        turns[0]++;
        for (volatile u64 delay = 0; delay < 20000; delay++)
            ;
        if (round == 13)
            culprit(99);
        print("round\n");
    }
    print("done\n");
    tohost = 1;
    for (;;)
        ;
}

__asm__(".section .text.start,\"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "    csrr a0, mhartid\n"
        "    la sp, stacks\n"
        "    addi t0, a0, 1\n"
        "    slli t0, t0, 12\n"
        "    add sp, sp, t0\n"
        "    call program\n"
        ".text\n");
