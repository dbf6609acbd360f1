/* The guest's wall clock.
 *
 *   clock set           sets it from the real-time clock, to the microsecond: the kernel
 *                       itself takes whole seconds from there when it boots
 *   clock serve PORT    answers each byte that comes over a TCP connection with the time, a
 *                       line of nanoseconds since 1970; one connection at a time, for ever
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* The goldfish real-time clock of the virt board. A read of the low half latches the high. */
#define RTC_ADDRESS 0x101000
#define RTC_NAME "101000.rtc"
#define RTC_BYTES 0x1000
#define RTC_TIME_LOW 0
#define RTC_TIME_HIGH 1

#define SECOND_NS 1000000000
#define CLOSE_NS 100000

static int fail(const char *what)
{
    perror(what);
    return 1;
}

/* Takes the device away from its driver, or gives it back: "unbind" or "bind". */
static int driver(const char *verb)
{
    char path[64];
    snprintf(path, sizeof path, "/sys/bus/platform/drivers/goldfish_rtc/%s", verb);
    int file = open(path, O_WRONLY);
    int written = file >= 0 && write(file, RTC_NAME, strlen(RTC_NAME)) > 0;
    if (!written)
        perror(path);
    close(file);
    return written;
}

static uint64_t uptime_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (uint64_t)SECOND_NS + now.tv_nsec;
}

/* The real-time clock minus the uptime. Its driver tells whole seconds only, and the kernel
 * shows no registers of a device that has a driver. */
static int read_rtc(uint64_t *difference_ns)
{
    int memory = open("/dev/mem", O_RDONLY | O_SYNC);
    if (memory < 0)
        return fail("clock: /dev/mem");
    volatile uint32_t *rtc = mmap(NULL, RTC_BYTES, PROT_READ, MAP_SHARED, memory, RTC_ADDRESS);
    if (rtc == MAP_FAILED)
        return fail("clock: mapping the real-time clock");
    /* Whatever takes the processor between two readings makes them differ: the closest count. */
    uint64_t closest_ns = UINT64_MAX;
    for (int attempt = 0; attempt < 8; attempt++) {
        uint64_t before_ns = uptime_ns();
        uint64_t low = rtc[RTC_TIME_LOW];
        uint64_t rtc_ns = (uint64_t)rtc[RTC_TIME_HIGH] << 32 | low;
        uint64_t apart_ns = uptime_ns() - before_ns;
        if (apart_ns < closest_ns) {
            closest_ns = apart_ns;
            *difference_ns = rtc_ns - before_ns - apart_ns / 2;
        }
    }
    munmap((void *)rtc, RTC_BYTES);
    close(memory);
    return 0;
}

static int set(void)
{
    uint64_t difference_ns = 0;
    if (!driver("unbind"))
        return 1;
    int failed = read_rtc(&difference_ns);
    /* The kernel sets its clock, to whole seconds, when the driver comes back. */
    if (!driver("bind") || failed)
        return 1;
    for (int attempt = 0; attempt < 8; attempt++) {
        uint64_t now_ns = difference_ns + uptime_ns();
        struct timespec now = {.tv_sec = now_ns / SECOND_NS, .tv_nsec = now_ns % SECOND_NS};
        if (clock_settime(CLOCK_REALTIME, &now))
            return fail("clock: setting the clock");
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t set_ns = now.tv_sec * (uint64_t)SECOND_NS + now.tv_nsec;
        if (difference_ns + uptime_ns() - set_ns < CLOSE_NS)
            break;
    }
    return 0;
}

static void answer(int connection)
{
    char question, line[32];
    while (read(connection, &question, 1) == 1) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        int length = snprintf(line, sizeof line, "%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
        if (write(connection, line, length) != length)
            return;
    }
}

static int serve(int port)
{
    /* Whoever asks measures the clock, not the queue of those who wait for a processor. */
    struct sched_param first = {.sched_priority = 50};
    if (sched_setscheduler(0, SCHED_FIFO, &first))
        return fail("clock: going before others");
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4))
        return fail("clock: listening");
    puts("CLOCK-READY");
    fflush(stdout);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            return fail("clock: accepting");
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        answer(connection);
        close(connection);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "set"))
        return set();
    if (argc == 3 && !strcmp(argv[1], "serve"))
        return serve(atoi(argv[2]));
    fputs("usage: clock set | clock serve PORT\n", stderr);
    return 2;
}
