/* Integer work for comparing machines: the same four parts, amounts and checksums as the
 * Debian guest's bench program (../../debian/src/bench.c), without an operating system. */
#include "load.h"

#define SIEVE_BYTES (1u << 20)
#define MATRIX_SIZE 64
#define CRC_BYTES 65536u
#define CHASE_WORDS (1u << 18)

static u32 sieve(u64 rounds)
{
    u8 *is_prime = heap_take(SIEVE_BYTES);
    u32 primes = 0;

    for (u64 round = 0; round < rounds; round++) {
        memset(is_prime, 1, SIEVE_BYTES);
        for (u32 i = 2; i * i < SIEVE_BYTES; i++)
            if (is_prime[i])
                for (u32 j = i * i; j < SIEVE_BYTES; j += i)
                    is_prime[j] = 0;
        for (u32 i = 2; i < SIEVE_BYTES; i++)
            primes += is_prime[i];
    }
    return primes;
}

static u32 matrix(u64 rounds)
{
    static i32 left[MATRIX_SIZE][MATRIX_SIZE], right[MATRIX_SIZE][MATRIX_SIZE];
    static i32 product[MATRIX_SIZE][MATRIX_SIZE];
    u32 sum = 0;

    for (int i = 0; i < MATRIX_SIZE; i++)
        for (int j = 0; j < MATRIX_SIZE; j++) {
            left[i][j] = i * 3 + j;
            right[i][j] = i - j * 5;
        }
    for (u64 round = 0; round < rounds; round++) {
        for (int i = 0; i < MATRIX_SIZE; i++)
            for (int j = 0; j < MATRIX_SIZE; j++) {
                i32 cell = 0;

                for (int k = 0; k < MATRIX_SIZE; k++)
                    cell = (i32)((u32)cell + (u32)left[i][k] * (u32)right[k][j]);
                product[i][j] = cell;
            }
        left[round & 63][0] = (i32)((u32)left[round & 63][0] + (u32)product[1][1]);
        sum += (u32)product[63][round & 63];
    }
    return sum;
}

static u32 crc(u64 rounds)
{
    static u32 table[256];
    u8 *input = heap_take(CRC_BYTES);
    u32 value = ~0u;

    for (u32 i = 0; i < 256; i++) {
        u32 entry = i;

        for (int k = 0; k < 8; k++)
            entry = entry & 1 ? 0xedb88320u ^ (entry >> 1) : entry >> 1;
        table[i] = entry;
    }
    for (u32 i = 0; i < CRC_BYTES; i++)
        input[i] = (u8)(i * 7 + (i >> 8));
    for (u64 round = 0; round < rounds; round++)
        for (u32 i = 0; i < CRC_BYTES; i++)
            value = table[(value ^ input[i]) & 255] ^ (value >> 8);
    return ~value;
}

static u32 chase(u64 million_steps)
{
    u32 *next = heap_take(CHASE_WORDS * sizeof *next);
    u32 at = 0, sum = 0;

    /* a linear congruential generator of full period: one cycle through all */
    for (u32 i = 0; i < CHASE_WORDS; i++)
        next[i] = (i * 1664525u + 1013904223u) & (CHASE_WORDS - 1);
    for (u64 step = 0; step < million_steps * 1000000; step++) {
        at = next[at];
        sum += at;
    }
    return sum;
}

static void part(const char *name, u32 (*work)(u64), u64 amount)
{
    char line[100];
    struct text text = {line, line + sizeof line - 1};
    u64 start = now_ns();
    u32 sum = work(amount);
    u64 ns = now_ns() - start;

    text_put(&text, "BENCH ");
    text_put(&text, name);
    text_put(&text, " sum=");
    text_put_hex(&text, sum);
    text_put(&text, " ns=");
    text_put_u64(&text, ns);
    text_put(&text, "\n");
    *text.at = 0;
    console_put(line);
}

void bench(u64 scale)
{
    console_put("BENCH start\n");
    part("sieve", sieve, 12 * scale);
    part("matrix", matrix, 48 * scale);
    part("crc", crc, 200 * scale);
    part("chase", chase, 3 * scale);
}
