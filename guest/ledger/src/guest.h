/* What every file of the guest uses: types, time, console, strings, memory. */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

#define NEVER (~0ull) /* a deadline that is none */
#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull
#define MIB (1ull << 20)

/* string.c */
void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);
size_t strlen(const char *text);
/* Reads a decimal number and moves *text past it. False if there is none, or it is too large. */
bool parse_u64(const char **text, const char *end, u64 *value);

/* A text being put together; what does not fit is left out. */
struct text {
    char *at, *end;
};
void text_put(struct text *text, const char *string);
void text_put_bytes(struct text *text, const void *bytes, size_t count);
void text_put_u64(struct text *text, u64 value);
void text_put_hex(struct text *text, u64 value); /* 16 digits */

/* board.c: the machine around the hart */
struct board {
    u64 hart;
    u64 memory_start, memory_bytes;
    u64 timer_hz;
    bool has_sstc;
    char arguments[1024]; /* the kernel command line */
};
extern struct board board;
void board_init(u64 hart, const void *device_tree);
u64 now_ns(void);
/* Sleeps until an interrupt is pending or the deadline is past. */
void wait_until(u64 deadline_ns);
/* How long this guest has slept. */
u64 slept_ns(void);
/* Tells the interrupt controller to pass on this source. */
void interrupt_enable(u32 source);
/* The sources that are pending, one per call, 0 when there is no more. Follow each by
   interrupt_done once the device's own status is cleared. */
u32 interrupt_claim(void);
void interrupt_done(u32 source);
void console_put(const char *string);
/* Prints a line and powers the machine off. A failure is told to the firmware. */
_Noreturn void power_off(const char *why, bool failed);

/* The value of NAME=VALUE, or of the bare word NAME (then empty), on the command line.
   Null if absent; *end is where the value ends. */
const char *argument(const char *name, const char **end);

/* Memory above the image, handed out once and never returned. Not cleared. Power-off
   when there is not enough. */
void *heap_take(u64 bytes);
u64 heap_left_bytes(void);

/* Network byte order. */
static inline u16 swap16(u16 value)
{
    return (u16)(value << 8 | value >> 8);
}

static inline u32 swap32(u32 value)
{
    return (u32)swap16((u16)value) << 16 | swap16((u16)(value >> 16));
}

#endif
