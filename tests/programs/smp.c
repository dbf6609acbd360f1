/* What several harts must see of each other: a supervisor program over any SBI, for 2 to 8
 * harts. tests/tests/smp_directed.rs compiles and runs it. It runs on QEMU's virt board too
 * (-smp 4 -nographic -kernel smp.elf), which fails two of its tests: QEMU's SC compares values,
 * so that it succeeds after a store of the same one (sc-after-a-foreign-store), and OpenSBI takes
 * a mask with a hart that does not exist (interrupt-of-a-hart-that-is-not).
 *
 * The hart that boots starts the others and leads; each test prints "ok NAME" or "FAILED NAME
 * found expected". It ends by SRST, with a system failure if a test failed.
 */

#include <stdint.h>

#define MAX_HARTS 8
#define ROUNDS 2000
#define IPI_ROUNDS 50
#define PAGE 4096

typedef uint64_t u64;

enum { IPI = 0x735049, RFENCE = 0x52464e43, HSM = 0x48534d, SRST = 0x53525354 };

/* --- the harts ----------------------------------------------------------------------------- */

asm(".globl _start\n"
    "_start:\n"
    "  la sp, stacks\n"
    "  addi t0, a0, 1\n"
    "  slli t0, t0, 14\n"
    "  add sp, sp, t0\n"
    "  la t0, trap\n"
    "  csrw stvec, t0\n"
    "  j enter\n"
    ".align 2\n"
    "trap:\n"
    /* An IPI is counted and cleared; a fault skips its 4-byte instruction and is noted. */
    "  csrw sscratch, t0\n"
    "  csrr t0, scause\n"
    "  bltz t0, 1f\n"
    "  mv tp, t0\n"
    "  csrr t0, sepc\n"
    "  addi t0, t0, 4\n"
    "  csrw sepc, t0\n"
    "  csrr t0, sscratch\n"
    "  sret\n"
    "1: csrci sip, 2\n"
    "  addi gp, gp, 1\n"
    "  csrr t0, sscratch\n"
    "  sret\n"
    ".bss\n.align 14\nstacks: .skip 16384 * 8\n.text\n");

static struct {
    u64 error, value;
} sbi_answer[MAX_HARTS];

static u64 sbi(u64 hart, u64 extension, u64 function, u64 arg0, u64 arg1, u64 arg2, u64 arg3, u64 arg4)
{
    register u64 a0 asm("a0") = arg0;
    register u64 a1 asm("a1") = arg1;
    register u64 a2 asm("a2") = arg2;
    register u64 a3 asm("a3") = arg3;
    register u64 a4 asm("a4") = arg4;
    register u64 a6 asm("a6") = function;
    register u64 a7 asm("a7") = extension;
    asm volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a2), "r"(a3), "r"(a4), "r"(a6), "r"(a7) : "memory");
    sbi_answer[hart].error = a0;
    sbi_answer[hart].value = a1;
    return a0;
}

/* Interrupts of software taken by this hart so far: kept in gp, which -mno-relax leaves alone. */
static u64 interrupts(void)
{
    u64 count;
    asm volatile("mv %0, gp" : "=r"(count));
    return count;
}

/* --- words ----------------------------------------------------------------------------------- */

static u64 failures, leader;

static void print(const char *text)
{
    for (; *text; text++)
        *(volatile uint8_t *)0x10000000 = *text;
}

static void print_number(u64 number)
{
    char digits[21], *at = digits + 20;
    *at = 0;
    do
        *--at = '0' + number % 10;
    while (number /= 10);
    print(at);
}

static void check(const char *name, u64 found, u64 expected)
{
    print(found == expected ? "ok " : "FAILED ");
    print(name);
    if (found != expected) {
        failures++;
        print(" ");
        print_number(found);
        print(" ");
        print_number(expected);
    }
    print("\n");
}

/* --- phases: each test runs on all harts between two meetings -------------------------------- */

static u64 harts, met, phase;

static u64 load(u64 *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void store(u64 *word, u64 value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* `pause` (Zihintpause), by its bits for an assembler that does not know it: others may have their turn. */
static void pause(void)
{
    asm volatile(".word 0x0100000f" : : : "memory");
}

static void meet(void)
{
    u64 here = load(&phase);
    if (__atomic_add_fetch(&met, 1, __ATOMIC_ACQ_REL) == harts) {
        store(&met, 0);
        store(&phase, here + 1);
    }
    while (load(&phase) == here)
        pause();
}

/* --- atomics --------------------------------------------------------------------------------- */

static u64 counter, guarded, lock, sc_failed, message[2], wrong;

/* A counter by LR/SC, with time between the two for others to come in. */
static void count_by_lr_sc(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        u64 value, failed;
        do {
            asm volatile("lr.d %0, (%2)\n addi %0, %0, 1\n sc.d %1, %0, (%2)"
                         : "=&r"(value), "=&r"(failed) : "r"(&counter) : "memory");
            if (failed)
                __atomic_add_fetch(&sc_failed, 1, __ATOMIC_RELAXED);
        } while (failed);
    }
}

/* A plain counter under a lock of AMOs. */
static void count_under_lock(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        u64 taken;
        do
            asm volatile("amoswap.d.aq %0, %1, (%2)" : "=r"(taken) : "r"(1ul), "r"(&lock) : "memory");
        while (taken);
        *(volatile u64 *)&guarded = *(volatile u64 *)&guarded + 1;
        asm volatile("amoswap.d.rl zero, zero, (%0)" : : "r"(&lock) : "memory");
    }
}

/* A reservation is lost when another hart stores, even what was there. */
static u64 reserved, step;

static u64 sc_after_a_foreign_store(u64 hart, u64 other)
{
    u64 failed = 0;
    if (hart == leader) {
        asm volatile("lr.d t0, (%1)\n"
                     "li t1, 1\n sd t1, (%2)\n"                      /* now you */
                     "1: ld t1, (%2)\n addi t1, t1, -2\n bnez t1, 1b\n" /* until it has stored */
                     "sc.d %0, t0, (%1)"
                     : "=&r"(failed) : "r"(&reserved), "r"(&step) : "t0", "t1", "memory");
    } else if (hart == other) {
        while (load(&step) != 1)
            ;
        store(&reserved, 7);
        store(&step, 2);
    }
    return failed;
}

/* What was written before a fence is seen by whoever saw what was written after it. */
static void pass_messages(u64 hart, u64 other)
{
    for (u64 round = 1; round <= ROUNDS; round++) {
        if (hart == leader) {
            while (load(&message[1]) != 0)
                pause();
            *(volatile u64 *)&message[0] = round;
            asm volatile("fence w, w" : : : "memory");
            *(volatile u64 *)&message[1] = round;
        } else if (hart == other) {
            while (*(volatile u64 *)&message[1] != round)
                pause();
            asm volatile("fence r, r" : : : "memory");
            if (*(volatile u64 *)&message[0] != round)
                wrong++;
            store(&message[1], 0);
        }
    }
}

/* --- interrupts between harts ----------------------------------------------------------------- */

static u64 got[MAX_HARTS], sent;

/* The leader interrupts all others, who wait in WFI, round after round. */
static void interrupt_each_other(u64 hart)
{
    u64 others = ((1ul << harts) - 1) & ~(1ul << leader);
    for (u64 round = 1; round <= IPI_ROUNDS; round++) {
        if (hart == leader) {
            for (u64 other = 0; other < harts; other++)
                while (other != leader && load(&got[other]) != round - 1)
                    ;
            store(&sent, round);
            sbi(hart, IPI, 0, others, 0, 0, 0, 0);
        } else {
            u64 before = interrupts();
            store(&got[hart], round - 1);
            asm volatile("csrsi sstatus, 2\n csrsi sie, 2");
            while (interrupts() == before)
                asm volatile("wfi");
            asm volatile("csrci sstatus, 2");
            if (load(&sent) != round)
                __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
            store(&got[hart], round);
        }
    }
}

/* --- remote fences ------------------------------------------------------------------------------ */

#define V 1
#define R 2
#define W 4
#define X 8
#define A 64
#define D 128
#define WINDOW 0x40000000ul

static u64 root[512] __attribute__((aligned(PAGE))), middle[512] __attribute__((aligned(PAGE)));
static u64 leaf[512] __attribute__((aligned(PAGE)));
static u64 first[512] __attribute__((aligned(PAGE))), second[512] __attribute__((aligned(PAGE)));
static uint32_t code[1024] __attribute__((aligned(PAGE)));

static u64 entry(void *page, u64 bits)
{
    return (u64)page >> 12 << 10 | bits | V | A | D;
}

/* Identity for memory and the serial port; one page at WINDOW. */
static void map(void)
{
    root[2] = entry((void *)0x80000000, R | W | X);
    root[0] = entry((void *)0, R | W);
    root[1] = (u64)middle >> 12 << 10 | V;
    middle[0] = (u64)leaf >> 12 << 10 | V;
    leaf[0] = entry(first, R | W);
    first[0] = 111;
    second[0] = 222;
    code[0] = 0x06f00513; /* li a0, 111 */
    code[1] = 0x00008067; /* ret */
}

static void translate(int on)
{
    u64 satp = on ? 8ul << 60 | (u64)root >> 12 : 0;
    asm volatile("sfence.vma\n csrw satp, %0\n sfence.vma" : : "r"(satp) : "memory");
}

static u64 peek(void)
{
    return *(volatile u64 *)WINDOW;
}

/* The cause of the fault of a store through the window, or 0. */
static u64 poke(void)
{
    u64 cause;
    asm volatile("li tp, 0\n .option push\n .option norvc\n sd zero, 8(%1)\n .option pop\n mv %0, tp"
                 : "=r"(cause) : "r"(WINDOW) : "memory");
    return cause;
}

static u64 call(void)
{
    return ((u64 (*)(void))code)();
}

/* Each hart uses what is there, the leader changes it and fences the others remotely, and each
 * must then see what is new without a fence of its own. */
static u64 remote_fences(u64 hart, u64 function, u64 *expectations)
{
    u64 differences = 0, others = ((1ul << harts) - 1) & ~(1ul << leader);
    translate(1);
    differences += peek() != expectations[0];
    meet();
    if (hart == leader) {
        store(&leaf[0], expectations[1] == 222 ? entry(second, R | W) : entry(first, R));
        asm volatile("sfence.vma" : : : "memory");
        differences += sbi(hart, RFENCE, function, others, 0, WINDOW, PAGE, 0) != 0;
    }
    meet();
    differences += peek() != expectations[1];
    differences += poke() != expectations[2];
    meet();
    translate(0);
    return differences;
}

static u64 remote_code(u64 hart)
{
    u64 differences = call() != 111;
    meet();
    if (hart == leader) {
        *(volatile uint32_t *)code = 0x0de00513; /* li a0, 222 */
        asm volatile("fence.i" : : : "memory");
        differences += sbi(hart, RFENCE, 0, 0, -1, 0, 0, 0) != 0; /* all harts */
    }
    meet();
    return differences + (call() != 222);
}

/* --- the tests, on every hart ------------------------------------------------------------------- */

static u64 differences;

static void differ(u64 count)
{
    __atomic_add_fetch(&differences, count, __ATOMIC_RELAXED);
}

static void all_see(u64 hart, const char *name)
{
    meet();
    if (hart == leader) {
        check(name, differences, 0);
        differences = 0;
    }
    meet();
}

static void run(u64 hart)
{
    u64 other = (leader + 1) % harts, failed;
    meet();
    count_by_lr_sc();
    meet();
    if (hart == leader)
        check("lr-sc-counter", counter, harts * ROUNDS);
    count_under_lock();
    meet();
    if (hart == leader)
        check("amo-lock", guarded, harts * ROUNDS);
    store(&reserved, 7);
    meet();
    failed = sc_after_a_foreign_store(hart, other);
    if (hart == leader)
        check("sc-after-a-foreign-store", failed, 1);
    meet();
    pass_messages(hart, other);
    meet();
    if (hart == leader)
        check("messages-over-fences", wrong, 0);
    meet();
    interrupt_each_other(hart);
    meet();
    if (hart == leader)
        check("interrupts-between-harts", wrong, 0);
    differ(remote_fences(hart, 1, (u64[]){111, 222, 0}));
    all_see(hart, "remote-sfence-vma-of-a-moved-page");
    if (hart == leader)
        leaf[0] = entry(first, R | W);
    meet();
    differ(remote_fences(hart, 2, (u64[]){111, 111, 15}));
    all_see(hart, "remote-sfence-vma-asid-of-a-right-taken");
    differ(remote_code(hart));
    all_see(hart, "remote-fence-i");
}

/* --- start and end -------------------------------------------------------------------------------- */

extern void _start(void);

static void lead(u64 hart)
{
    leader = hart;
    map();
    while (harts < MAX_HARTS && sbi(hart, HSM, 2, harts, 0, 0, 0, 0) == 0)
        harts++;
    for (u64 other = 0; other < harts; other++)
        if (other != hart) {
            check("status-of-a-hart", sbi(hart, HSM, 2, other, 0, 0, 0, 0), 0);
            check("status-of-a-stopped-hart", sbi_answer[hart].value, 1);
            check("start-of-a-hart", sbi(hart, HSM, 0, other, (u64)_start, 1, 0, 0), 0);
        }
    check("start-of-a-started-hart", sbi(hart, HSM, 0, hart, (u64)_start, 1, 0, 0), (u64)-6);
    check("interrupt-of-a-hart-that-is-not", sbi(hart, IPI, 0, 1ul << harts, 0, 0, 0, 0), (u64)-3);
    run(hart);
    /* The others stop themselves; then each is stopped, and can be started once more. */
    for (u64 other = 0; other < harts; other++)
        if (other != hart)
            do
                sbi(hart, HSM, 2, other, 0, 0, 0, 0);
            while (sbi_answer[hart].value != 1);
    print("ok harts-stop-themselves\n");
    print(failures ? "SMP-FAILED " : "SMP-OK ");
    print_number(harts);
    print("\n");
    sbi(hart, SRST, 0, 0, failures != 0, 0, 0, 0);
    for (;;)
        ;
}

void enter(u64 hart, u64 started_by_us)
{
    asm volatile("csrci sstatus, 2\n csrw sie, zero\n csrw satp, zero\n li gp, 0");
    if (started_by_us != 1)
        lead(hart);
    run(hart);
    sbi(hart, HSM, 1, 0, 0, 0, 0, 0);
    for (;;)
        ;
}
