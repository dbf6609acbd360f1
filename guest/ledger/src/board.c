/* QEMU's "virt" board: device tree, SBI, timer, interrupt controller, console, memory. */
#include "guest.h"

#define UART 0x10000000ull
#define UART_LINE_STATUS 5
#define UART_TRANSMIT_EMPTY 0x20
#define SYSCON 0x100000ull
#define SYSCON_PASS 0x5555u
#define SYSCON_FAIL 0x13333u
#define PLIC 0x0c000000ull
#define PLIC_ENABLE (PLIC + 0x2000)
#define PLIC_CONTEXT (PLIC + 0x200000)

#define SBI_TIME 0x54494d45
#define SBI_RESET 0x53525354

#define SIE_TIMER (1u << 5)
#define SIE_EXTERNAL (1u << 9)

struct board board = {
    .memory_start = 0x80000000ull,
    .memory_bytes = 64 * MIB,
    .timer_hz = 10000000,
};

static u64 heap_at, heap_end;
static u64 slept;
static u64 ns_per_tick; /* 0: the timer does not divide a second into whole nanoseconds */

static u64 sbi_call(u64 extension, u64 function, u64 first, u64 second)
{
    register u64 a0 asm("a0") = first;
    register u64 a1 asm("a1") = second;
    register u64 a6 asm("a6") = function;
    register u64 a7 asm("a7") = extension;

    asm volatile("ecall" : "+r"(a0), "+r"(a1) : "r"(a6), "r"(a7) : "memory");
    return a0;
}

static volatile u32 *reg32(u64 address)
{
    return (volatile u32 *)address;
}

void console_put(const char *string)
{
    volatile u8 *uart = (volatile u8 *)UART;

    for (; *string; string++) {
        while (!(uart[UART_LINE_STATUS] & UART_TRANSMIT_EMPTY))
            ;
        uart[0] = (u8)*string;
    }
}

_Noreturn void power_off(const char *why, bool failed)
{
    console_put("LEDGER power-off: ");
    console_put(why);
    console_put("\n");
    sbi_call(SBI_RESET, 0, 0, failed);
    *reg32(SYSCON) = failed ? SYSCON_FAIL : SYSCON_PASS;
    for (;;)
        asm volatile("wfi");
}

_Noreturn void fatal_trap(u64 cause, u64 counter, u64 value)
{
    char line[120];
    struct text text = {line, line + sizeof line - 1};

    text_put(&text, "trap cause=");
    text_put_hex(&text, cause);
    text_put(&text, " pc=");
    text_put_hex(&text, counter);
    text_put(&text, " value=");
    text_put_hex(&text, value);
    *text.at = 0;
    power_off(line, true);
}

/* --- device tree (Devicetree Specification 0.4, chapter 5) ------------------------- */

#define TREE_MAGIC 0xd00dfeedu
enum { TREE_NODE = 1, TREE_NODE_END = 2, TREE_PROPERTY = 3, TREE_NOP = 4 };

struct tree_header {
    u32 magic, total_bytes, structure, strings, reserve_map, version, compatible_version;
    u32 boot_hart, strings_bytes, structure_bytes;
};

static bool starts_with(const char *text, const char *start)
{
    return !memcmp(text, start, strlen(start));
}

static bool contains(const char *text, u32 bytes, const char *word)
{
    u32 length = (u32)strlen(word);

    for (u32 i = 0; i + length <= bytes; i++)
        if (!memcmp(text + i, word, length))
            return true;
    return false;
}

static u64 cell64(const u32 *cells)
{
    return (u64)swap32(cells[0]) << 32 | swap32(cells[1]);
}

/* `node` is the name of the node at depth 1 that the property is in or below. */
static void take_property(const char *node, int depth, const char *name, const u32 *value, u32 bytes)
{
    const char *text = (const char *)value;

    if (starts_with(node, "memory@") && !memcmp(name, "reg", 4) && bytes >= 16) {
        board.memory_start = cell64(value);
        board.memory_bytes = cell64(value + 2);
    } else if (!memcmp(node, "chosen", 7) && !memcmp(name, "bootargs", 9)) {
        u32 count = bytes < sizeof board.arguments ? bytes : sizeof board.arguments - 1;

        memcpy(board.arguments, text, count);
    } else if (!memcmp(node, "cpus", 5)) {
        if (depth == 2 && !memcmp(name, "timebase-frequency", 19) && bytes == 4)
            board.timer_hz = swap32(value[0]);
        else if (starts_with(name, "riscv,isa") && contains(text, bytes, "sstc"))
            board.has_sstc = true;
    }
}

/* Walks the tree once. A tree that is none leaves the board's defaults. */
static void read_device_tree(const struct tree_header *header)
{
    if (!header || ((u64)header & 3) || swap32(header->magic) != TREE_MAGIC)
        return;
    const u8 *base = (const u8 *)header;
    const char *strings = (const char *)base + swap32(header->strings);
    const u32 *at = (const u32 *)(base + swap32(header->structure));
    const u32 *end = at + swap32(header->structure_bytes) / 4;
    const char *node = "";
    int depth = 0;

    while (at < end) {
        switch (swap32(*at++)) {
        case TREE_NODE:
            if (++depth == 2)
                node = (const char *)at;
            at += strlen((const char *)at) / 4 + 1;
            break;
        case TREE_NODE_END:
            if (--depth < 2)
                node = "";
            break;
        case TREE_PROPERTY: {
            u32 bytes = swap32(at[0]);

            if (bytes / 4 > (u32)(end - at))
                return;
            take_property(node, depth, strings + swap32(at[1]), at + 2, bytes);
            at += 2 + (bytes + 3) / 4;
            break;
        }
        case TREE_NOP:
            break;
        default: /* the end, or nothing we know */
            return;
        }
    }
}

const char *argument(const char *name, const char **end)
{
    u64 length = strlen(name);

    for (const char *at = board.arguments; *at;) {
        const char *word = at;

        while (*at && *at != ' ')
            at++;
        *end = at;
        if ((u64)(at - word) >= length && !memcmp(word, name, length)) {
            if (word + length == at)
                return at;
            if (word[length] == '=')
                return word + length + 1;
        }
        while (*at == ' ')
            at++;
    }
    return 0;
}

/* --- memory ------------------------------------------------------------------------ */

void *heap_take(u64 bytes)
{
    u64 start = heap_at;

    bytes = (bytes + 4095) & ~4095ull;
    if (bytes > heap_end - heap_at)
        power_off("not enough memory", true);
    heap_at += bytes;
    return (void *)start;
}

u64 heap_left_bytes(void)
{
    return heap_end - heap_at;
}

/* --- time and interrupts ----------------------------------------------------------- */

u64 now_ns(void)
{
    u64 ticks;

    asm volatile("csrr %0, time" : "=r"(ticks)::"memory");
    if (ns_per_tick)
        return ticks * ns_per_tick;
    return ticks / board.timer_hz * NS_PER_S + ticks % board.timer_hz * NS_PER_S / board.timer_hz;
}

static u64 ticks_of_ns(u64 ns)
{
    if (ns == NEVER)
        return ~0ull;
    if (ns_per_tick)
        return (ns + ns_per_tick - 1) / ns_per_tick;
    return ns / NS_PER_S * board.timer_hz + ns % NS_PER_S * board.timer_hz / NS_PER_S + 1;
}

void wait_until(u64 deadline_ns)
{
    static u64 armed_ns;

    if (deadline_ns != armed_ns) {
        u64 ticks = ticks_of_ns(deadline_ns);

        armed_ns = deadline_ns;
        if (board.has_sstc)
            asm volatile("csrw 0x14d, %0" ::"r"(ticks)); /* stimecmp */
        else
            sbi_call(SBI_TIME, 0, ticks, 0);
    }
    u64 before = now_ns();

    asm volatile("wfi" ::: "memory");
    slept += now_ns() - before;
}

u64 slept_ns(void)
{
    return slept;
}

static u64 plic_context(void)
{
    return 2 * board.hart + 1; /* M-mode and S-mode of each hart in turn */
}

void interrupt_enable(u32 source)
{
    *reg32(PLIC + 4 * source) = 1; /* priority */
    *reg32(PLIC_ENABLE + 0x80 * plic_context() + source / 32 * 4) |= 1u << source % 32;
}

u32 interrupt_claim(void)
{
    return *reg32(PLIC_CONTEXT + 0x1000 * plic_context() + 4);
}

void interrupt_done(u32 source)
{
    *reg32(PLIC_CONTEXT + 0x1000 * plic_context() + 4) = source;
}

void board_init(u64 hart, const void *device_tree)
{
    extern char bss_end[];

    board.hart = hart;
    read_device_tree(device_tree);
    if (NS_PER_S % board.timer_hz == 0)
        ns_per_tick = NS_PER_S / board.timer_hz;
    heap_at = (u64)bss_end;
    heap_end = board.memory_start + board.memory_bytes;
    *reg32(PLIC_CONTEXT + 0x1000 * plic_context()) = 0; /* threshold */
    asm volatile("csrw sie, %0" ::"r"(SIE_TIMER | SIE_EXTERNAL));
}
