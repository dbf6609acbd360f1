/* The built-in guest: see ../README.md. */
#include "guest.h"
#include "journal.h"
#include "ledger.h"
#include "load.h"
#include "net.h"
#include "service.h"
#include "tcp.h"
#include "virtio.h"

/* Frames handled before what they cause is sent. */
#define RECEIVE_BUDGET 64

static u64 power_off_ns = NEVER;

static void read_arguments(void)
{
    const char *end, *at = argument("poweroff-after", &end);
    u64 value = 1;

    if (at) {
        if (!parse_u64(&at, end, &value) || at != end || value > 1000000000)
            power_off("poweroff-after= wants seconds", true);
        power_off_ns = now_ns() + value * NS_PER_S;
    }
    value = 1;
    at = argument("bench", &end);
    if (at) {
        if (at != end && (!parse_u64(&at, end, &value) || at != end))
            power_off("bench= wants a number", true);
        bench(value);
        power_off("bench is done", false);
    }
}

static void print_ready(void)
{
    char line[200];
    struct text text = {line, line + sizeof line - 1};

    text_put(&text, "LEDGER ready ip=");
    text_put_address(&text, our_address);
    text_put(&text, " port=");
    text_put_u64(&text, SERVICE_PORT);
    text_put(&text, " memory=");
    text_put_u64(&text, board.memory_bytes / MIB);
    text_put(&text, "MiB entries=");
    text_put_u64(&text, ledger.length);
    text_put(&text, " journal=");
    text_put(&text, ledger.journaled ? "yes" : "no");
    text_put(&text, "\n");
    *text.at = 0;
    console_put(line);
}

static void serve(void)
{
    for (;;) {
        virtio_clear_interrupts();
        bool more = net_receive(RECEIVE_BUDGET);
        u64 now = now_ns();

        tcp_timers(now);
        u64 next_ns = load_step(now);

        journal_commit();
        tcp_flush();
        net_kick();
        if (now >= power_off_ns)
            power_off("the time given by poweroff-after is over", false);
        if (more || !next_ns)
            continue;
        if (tcp_deadline() < next_ns)
            next_ns = tcp_deadline();
        if (power_off_ns < next_ns)
            next_ns = power_off_ns;
        /* what arrived since the ring was looked at is a pending interrupt: no sleep then */
        wait_until(next_ns);
    }
}

_Noreturn void guest_main(u64 hart, const void *device_tree)
{
    board_init(hart, device_tree);
    read_arguments();
    net_init();
    tcp_init();
    ledger_init();
    load_init();
    print_ready();
    net_announce();
    serve();
    __builtin_unreachable();
}
