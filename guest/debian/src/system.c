/* system: what bench leaves out of a machine's speed.
 *
 * usage: system [SCALE]
 *
 *   chase8    dependent random loads over 8 MiB          (address translation, host caches)
 *   syscalls  getppid, and reads of one byte of /dev/zero (traps, the kernel's short paths)
 *   fork      a child that ends at once, waited for       (page tables, copy-on-write, faults)
 *
 * After each part a line as bench prints it; the line "made" comes before, when the memory of
 * chase8 is there, so that making it is not counted:
 *   BENCH <part> sum=<checksum> ns=<wall> cpu=<process CPU time>
 * The checksums must be the same on every machine.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHASE_WORDS (1u << 21) /* of 4 bytes: 8 MiB */
#define CHASE_BYTES (CHASE_WORDS * sizeof(uint32_t))
#define CHASE_STEPS 1000000
#define SYSCALLS 200000
#define FORKS 500

static uint32_t *next;

static uint32_t made(int scale)
{
    (void)scale;
    next = mmap(0, CHASE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (next == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    /* as bench: the tables of every page are to be walked */
    madvise(next, CHASE_BYTES, MADV_NOHUGEPAGE);
    /* a linear congruential generator of full period: one cycle through all */
    for (uint32_t i = 0; i < CHASE_WORDS; i++)
        next[i] = (i * 1664525u + 1013904223u) & (CHASE_WORDS - 1);
    return next[CHASE_WORDS - 1];
}

static uint32_t chase8(int scale)
{
    uint32_t at = 0, sum = 0;

    for (long step = 0; step < scale * (long)CHASE_STEPS; step++) {
        at = next[at];
        sum += at;
    }
    munmap(next, CHASE_BYTES); /* forks are not to copy its tables */
    return sum;
}

static uint32_t syscalls(int scale)
{
    int zero = open("/dev/zero", O_RDONLY);
    uint32_t sum = 0;
    char byte = 1;

    for (long i = 0; i < scale * (long)SYSCALLS; i += 2) {
        sum += syscall(SYS_getppid) > 0;
        sum += read(zero, &byte, 1) == 1 && byte == 0;
    }
    close(zero);
    return sum;
}

static uint32_t forks(int scale)
{
    uint32_t sum = 0;

    for (int i = 0; i < scale * FORKS; i++) {
        pid_t child = fork();
        int status;

        if (child == 0)
            _exit(i & 127);
        if (child < 0 || waitpid(child, &status, 0) != child) {
            perror("fork");
            exit(1);
        }
        sum = sum * 31 + WEXITSTATUS(status);
    }
    return sum;
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void part(const char *name, uint32_t (*work)(int), int scale)
{
    uint64_t wall = clock_ns(CLOCK_MONOTONIC), cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint32_t sum = work(scale);

    wall = clock_ns(CLOCK_MONOTONIC) - wall;
    cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("BENCH %s sum=%08x ns=%llu cpu=%llu\n", name, sum, (unsigned long long)wall,
           (unsigned long long)cpu);
    fflush(stdout);
}

int main(int count, char **arguments)
{
    int scale = count > 1 ? atoi(arguments[1]) : 1;

    part("made", made, scale);
    part("chase8", chase8, scale);
    part("syscalls", syscalls, scale);
    part("fork", forks, scale);
    return 0;
}
