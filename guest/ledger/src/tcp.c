#include "tcp.h"
#include "service.h"

struct tcp_header {
    u16 source, destination;
    u32 sequence, acknowledgement;
    u8 offset, flags;
    u16 window, checksum, urgent;
};

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

#define OPTION_END 0
#define OPTION_NOTHING 1
#define OPTION_MSS 2
#define OUR_MSS (MTU - IP_BYTES - TCP_BYTES)
#define SYN_OPTION_BYTES 4

#define TIMEOUT_FIRST_NS (1000 * NS_PER_MS)
#define TIMEOUT_MIN_NS (100 * NS_PER_MS)
#define TIMEOUT_MAX_NS (8 * NS_PER_S)
#define RETRIES_MAX 16 /* about 100 s */
#define SYN_RETRIES_MAX 5
#define TIME_WAIT_NS (2 * NS_PER_S)
#define FIN_WAIT_2_NS (30 * NS_PER_S)
/* When all connections are in use, one that was silent for so long makes room. */
#define SILENT_NS (300 * NS_PER_S)

/* A received segment, in host order, cut to what is new as it is handled. */
struct segment {
    u32 sequence, acknowledgement, window, mss;
    u8 flags;
    u16 peer_port;
    u32 peer_address;
    const u8 *mac;
    const u8 *data;
    u32 bytes;
};

struct tcp_statistics tcp_statistics;

static struct connection connections[CONNECTIONS_MAX];
static u32 connections_used; /* all in use are below this index */
static struct connection *flush_list[CONNECTIONS_MAX];
static u32 flush_count;
static u64 earliest_ns = NEVER; /* no deadline of any connection is before this */
static u16 our_port;

static bool before(u32 a, u32 b)
{
    return (i32)(a - b) < 0;
}

static u32 min32(u32 a, u32 b)
{
    return a < b ? a : b;
}

static u32 max32(u32 a, u32 b)
{
    return a > b ? a : b;
}

void tcp_init(void)
{
    u8 *buffers = heap_take((u64)CONNECTIONS_MAX * (RECEIVE_BYTES + SEND_BYTES));

    our_port = swap16(SERVICE_PORT);
    for (u32 i = 0; i < CONNECTIONS_MAX; i++, buffers += RECEIVE_BYTES + SEND_BYTES) {
        connections[i].receive_buffer = buffers;
        connections[i].send_buffer = buffers + RECEIVE_BYTES;
    }
}

/* --- lists and timers ---------------------------------------------------------------- */

static void want_flush(struct connection *c)
{
    if (!c->flush_wanted) {
        c->flush_wanted = true;
        flush_list[flush_count++] = c;
    }
}

static void want_ack(struct connection *c)
{
    c->ack_wanted = true;
    want_flush(c);
}

static void set_deadline(struct connection *c, u64 deadline_ns)
{
    c->deadline_ns = deadline_ns;
    if (deadline_ns < earliest_ns)
        earliest_ns = deadline_ns;
}

static void release(struct connection *c)
{
    c->state = TCP_FREE; /* tcp_flush passes over it */
    c->deadline_ns = NEVER;
    tcp_statistics.connections--;
    while (connections_used && connections[connections_used - 1].state == TCP_FREE)
        connections_used--;
}

static struct connection *find(u32 address, u16 port)
{
    for (struct connection *c = connections; c < connections + connections_used; c++)
        if (c->peer_port == port && c->peer_address == address && c->state != TCP_FREE)
            return c;
    return 0;
}

void tcp_peer_moved(u32 address, const u8 *mac)
{
    for (struct connection *c = connections; c < connections + connections_used; c++)
        if (c->peer_address == address)
            memcpy(c->peer_mac, mac, 6);
}

/* --- sending ----------------------------------------------------------------------- */

/* Completes the segment in `frame`, whose payload and options are in place. */
static void finish_segment(u8 *frame, const u8 *mac, u32 peer_address, struct tcp_header header, u32 tail_bytes)
{
    struct tcp_header *tcp = (void *)(frame + ETHERNET_BYTES + IP_BYTES);
    u32 bytes = TCP_BYTES + tail_bytes;

    header.source = our_port;
    *tcp = header;
    tcp->checksum = checksum_end(
        checksum_add(checksum_pseudo(our_address, peer_address, PROTOCOL_TCP, bytes), tcp, bytes));
    ip_fill(frame, mac, peer_address, PROTOCOL_TCP, bytes);
    net_send_frame(ETHERNET_BYTES + IP_BYTES + bytes);
    tcp_statistics.segments_out++;
}

/* The free part of the receive buffer, wherever in it the unread bytes stand. */
static u32 window_bytes(const struct connection *c)
{
    return RECEIVE_BYTES - (c->receive_end - c->receive_start);
}

/* Sends `bytes` from sequence number `sequence` on. False if no frame is free. */
static bool send_segment(struct connection *c, u8 flags, u32 sequence, u32 bytes)
{
    u8 *frame = net_take_frame();

    if (!frame)
        return false;
    u8 *tail = frame + ETHERNET_BYTES + IP_BYTES + TCP_BYTES;
    u32 tail_bytes = bytes;
    u32 start = sequence % SEND_BYTES;
    u32 first = min32(bytes, SEND_BYTES - start);

    if (flags & SYN) {
        const u8 mss[SYN_OPTION_BYTES] = {OPTION_MSS, 4, OUR_MSS >> 8, OUR_MSS & 255};

        memcpy(tail, mss, SYN_OPTION_BYTES);
        tail_bytes = SYN_OPTION_BYTES;
    } else {
        memcpy(tail, c->send_buffer + start, first);
        memcpy(tail + first, c->send_buffer, bytes - first);
    }
    u32 window = window_bytes(c);

    c->receive_edge = c->receive_next + window;
    c->ack_wanted = false;
    struct tcp_header header = {
        .destination = c->peer_port,
        .sequence = swap32(sequence),
        .acknowledgement = swap32(c->receive_next),
        .offset = (u8)(flags & SYN ? (TCP_BYTES + SYN_OPTION_BYTES) << 2 : TCP_BYTES << 2),
        .flags = flags,
        .window = swap16((u16)window),
    };
    finish_segment(frame, c->peer_mac, c->peer_address, header, tail_bytes);
    return true;
}

/* Answers a segment that belongs to no connection (RFC 9293, section 3.10.7.1). */
static void send_reset(const struct segment *s)
{
    u8 *frame;

    if ((s->flags & RST) || !(frame = net_take_frame()))
        return;
    u32 span = s->bytes + !!(s->flags & SYN) + !!(s->flags & FIN);
    struct tcp_header header = {
        .destination = s->peer_port,
        .sequence = s->flags & ACK ? swap32(s->acknowledgement) : 0,
        .acknowledgement = s->flags & ACK ? 0 : swap32(s->sequence + span),
        .offset = TCP_BYTES << 2,
        .flags = s->flags & ACK ? RST : RST | ACK,
    };

    finish_segment(frame, s->mac, s->peer_address, header, 0);
}

static u32 data_end(const struct connection *c)
{
    return c->send_start + c->send_bytes;
}

/* How many bytes to send next: what there is, what the windows leave, one segment. Waits
   for a whole segment while others are under way (RFC 9293, section 3.8.6.2.1). */
static u32 next_bytes(struct connection *c)
{
    u32 under_way = c->send_next - c->send_unacknowledged;
    u32 window = min32(c->send_window, c->congestion_window);
    u32 room = window > under_way ? window - under_way : 0;

    if (!before(c->send_next, data_end(c)))
        return 0;
    if (c->probe && !room)
        room = 1;
    u32 available = data_end(c) - c->send_next;
    u32 bytes = min32(min32(available, c->mss), room);

    return bytes < available && bytes < c->mss && under_way ? 0 : bytes;
}

static void note_sent(struct connection *c, u32 start, u32 end)
{
    u64 now = now_ns();

    if (before(start, c->send_max)) {
        tcp_statistics.retransmissions++;
        c->measuring = false; /* Karn's rule */
    } else if (!c->measuring) {
        c->measuring = true;
        c->measure_start_ns = now;
        c->measure_sequence = end;
    }
    if (before(c->send_max, end))
        c->send_max = end;
    if (c->deadline_ns == NEVER)
        set_deadline(c, now + c->timeout_ns);
}

/* Sends what the windows allow. False if the device has no frame left. */
static bool flush_connection(struct connection *c)
{
    if (c->state == TCP_SYN_RECEIVED || c->state == TCP_FREE)
        return true;
    for (;;) {
        u32 start = c->send_next, bytes = next_bytes(c);
        bool last = start + bytes == data_end(c);
        bool fin = c->closing && last;

        if (!bytes && !fin)
            break;
        u8 flags = (u8)(ACK | (bytes && last ? PSH : 0) | (fin ? FIN : 0));

        if (!send_segment(c, flags, start, bytes))
            return false;
        c->send_next = start + bytes + fin;
        c->probe = false;
        note_sent(c, start, c->send_next);
        if (fin) {
            if (c->state == TCP_ESTABLISHED)
                c->state = TCP_FIN_WAIT_1;
            else if (c->state == TCP_CLOSE_WAIT)
                c->state = TCP_LAST_ACK;
        }
    }
    /* send_max, even after going back: the peer ignores what is behind its window */
    if (c->ack_wanted && !send_segment(c, ACK, c->send_max, 0))
        return false;
    /* data waits for a closed window and nothing is under way: probe later */
    if (c->deadline_ns == NEVER && before(c->send_next, data_end(c)))
        set_deadline(c, now_ns() + c->timeout_ns);
    return true;
}

void tcp_flush(void)
{
    u32 left = 0;

    for (u32 i = 0; i < flush_count; i++) {
        struct connection *c = flush_list[i];

        if (flush_connection(c))
            c->flush_wanted = false;
        else
            flush_list[left++] = c;
    }
    flush_count = left;
}

/* --- deadlines ---------------------------------------------------------------------- */

static void abort_connection(struct connection *c)
{
    send_segment(c, RST | ACK, c->send_max, 0);
    release(c);
}

static void timed_out(struct connection *c, u64 now)
{
    c->deadline_ns = NEVER;
    if (c->state == TCP_TIME_WAIT || c->state == TCP_FIN_WAIT_2) {
        release(c);
        return;
    }
    if (++c->retries > (c->state == TCP_SYN_RECEIVED ? SYN_RETRIES_MAX : RETRIES_MAX)) {
        abort_connection(c);
        return;
    }
    c->timeout_ns = 2 * c->timeout_ns < TIMEOUT_MAX_NS ? 2 * c->timeout_ns : TIMEOUT_MAX_NS;
    if (c->state == TCP_SYN_RECEIVED) {
        tcp_statistics.retransmissions++;
        send_segment(c, SYN | ACK, c->send_unacknowledged, 0);
        set_deadline(c, now + c->timeout_ns);
        return;
    }
    /* go back to the oldest byte, and start slowly */
    c->slow_start_threshold = max32((c->send_max - c->send_unacknowledged) / 2, 2 * c->mss);
    c->congestion_window = c->mss;
    c->send_next = c->send_unacknowledged;
    c->recover = c->send_max;
    c->duplicate_acks = 0;
    c->probe = c->send_window == 0;
    want_flush(c);
}

void tcp_timers(u64 now)
{
    if (now < earliest_ns)
        return;
    earliest_ns = NEVER;
    for (struct connection *c = connections; c < connections + connections_used; c++) {
        if (c->state == TCP_FREE)
            continue;
        if (c->deadline_ns <= now)
            timed_out(c, now);
        else if (c->deadline_ns < earliest_ns)
            earliest_ns = c->deadline_ns;
    }
}

u64 tcp_deadline(void)
{
    return earliest_ns;
}

/* --- receiving ----------------------------------------------------------------------- */

/* A free connection; if there is none, one that only waits out its end, or whose peer seems
   to be gone: there are no keepalives, which would keep an idle machine busy. */
static struct connection *take_free(void)
{
    struct connection *waiting = 0, *silent = connections;

    for (u32 i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *c = connections + i;

        if (c->state == TCP_FREE) {
            if (i >= connections_used)
                connections_used = i + 1;
            tcp_statistics.connections++;
            return c;
        }
        if (c->state == TCP_TIME_WAIT && (!waiting || c->deadline_ns < waiting->deadline_ns))
            waiting = c;
        if (c->heard_ns < silent->heard_ns)
            silent = c;
    }
    if (!waiting && now_ns() - silent->heard_ns > SILENT_NS) {
        send_segment(silent, RST | ACK, silent->send_max, 0);
        waiting = silent;
    }
    return waiting;
}

static u32 first_sequence(const struct segment *s)
{
    /* differs for each connection and moves with time (RFC 9293, section 3.4.1) */
    u64 mix = ((u64)s->peer_address << 16 | s->peer_port) * 0x9e3779b97f4a7c15ull;

    return (u32)(mix >> 32) + (u32)(now_ns() / 4000);
}

static void accept_connection(const struct segment *s)
{
    struct connection *c = take_free();

    if (!c) {
        tcp_statistics.dropped++; /* the peer tries again */
        return;
    }
    u8 *receive_buffer = c->receive_buffer, *send_buffer = c->send_buffer;
    bool flush_wanted = c->flush_wanted; /* it may stand in the list from its last life */
    u32 first = first_sequence(s);

    *c = (struct connection){
        .state = TCP_SYN_RECEIVED,
        .flush_wanted = flush_wanted,
        .peer_address = s->peer_address,
        .peer_port = s->peer_port,
        .mss = s->mss,
        .receive_buffer = receive_buffer,
        .receive_first = s->sequence,
        .receive_next = s->sequence + 1,
        .send_buffer = send_buffer,
        .send_start = first + 1,
        .send_unacknowledged = first,
        .send_next = first + 1,
        .send_max = first + 1,
        .recover = first,
        .send_window = s->window,
        .window_sequence = s->sequence,
        .window_acknowledgement = first,
        .congestion_window = 10 * s->mss, /* RFC 6928 */
        .slow_start_threshold = ~0u,
        .heard_ns = now_ns(),
        .deadline_ns = NEVER,
        .timeout_ns = TIMEOUT_FIRST_NS,
    };
    memcpy(c->peer_mac, s->mac, 6);
    tcp_statistics.accepted++;
    send_segment(c, SYN | ACK, first, 0);
    set_deadline(c, now_ns() + c->timeout_ns);
}

/* Is any part of the segment new? Cuts off what is old, what is beyond the window, and,
   where a gap precedes it, all data: the peer then hears what is missing. Acknowledgement
   fields are worth reading even in such a segment. */
static void cut_to_window(struct connection *c, struct segment *s)
{
    i32 old = (i32)(c->receive_next - s->sequence);
    u32 window = window_bytes(c);

    if (old < 0) {
        s->bytes = 0;
        s->flags &= (u8)~FIN;
        want_ack(c);
        return;
    }
    if (old > 0) {
        want_ack(c); /* a repetition: our acknowledgement may have been lost */
        if ((u32)old > s->bytes) {
            s->flags &= (u8)~FIN;
            s->bytes = 0;
        } else {
            s->data += old;
            s->bytes -= (u32)old;
        }
        s->sequence = c->receive_next;
    }
    if (s->bytes > window) {
        s->bytes = window;
        s->flags &= (u8)~FIN;
        want_ack(c);
    }
}

static void measure_round_trip(struct connection *c, u64 now)
{
    u64 sample = now - c->measure_start_ns;

    c->measuring = false;
    if (!c->round_trip_ns) {
        c->round_trip_ns = sample + 1;
        c->round_trip_variance_ns = sample / 2;
    } else {
        u64 error = sample > c->round_trip_ns ? sample - c->round_trip_ns : c->round_trip_ns - sample;

        c->round_trip_variance_ns = (3 * c->round_trip_variance_ns + error) / 4;
        c->round_trip_ns = (7 * c->round_trip_ns + sample) / 8;
    }
}

static void reset_timeout(struct connection *c)
{
    u64 timeout = c->round_trip_ns + 4 * c->round_trip_variance_ns;

    if (!c->round_trip_ns)
        timeout = TIMEOUT_FIRST_NS;
    c->timeout_ns = timeout < TIMEOUT_MIN_NS ? TIMEOUT_MIN_NS : timeout > TIMEOUT_MAX_NS ? TIMEOUT_MAX_NS : timeout;
    c->retries = 0;
}

/* New data is acknowledged: frees it, opens the congestion window, restarts the timer. */
static void advance(struct connection *c, u32 acknowledgement)
{
    u64 now = now_ns();
    u32 acknowledged = acknowledgement - c->send_unacknowledged;

    c->send_unacknowledged = acknowledgement;
    if (before(c->send_next, acknowledgement))
        c->send_next = acknowledgement;
    if (before(c->send_start, acknowledgement)) {
        u32 freed = min32(acknowledgement - c->send_start, c->send_bytes); /* the rest is a FIN */

        c->send_start += freed;
        c->send_bytes -= freed;
    }
    if (c->measuring && !before(acknowledgement, c->measure_sequence))
        measure_round_trip(c, now);
    reset_timeout(c);
    c->duplicate_acks = 0;
    if (c->congestion_window < c->slow_start_threshold)
        c->congestion_window += min32(acknowledged, c->mss);
    else if (c->congestion_window < SEND_BYTES)
        c->congestion_window += max32(c->mss * c->mss / c->congestion_window, 1);
    if (c->send_max == acknowledgement)
        c->deadline_ns = NEVER;
    else
        set_deadline(c, now + c->timeout_ns);
    if (c->send_bytes)
        want_flush(c);
}

/* Three acknowledgements of the same byte: the segment after it was lost. Unless they are
   answers to what was sent again before (RFC 6582). */
static void count_duplicate(struct connection *c)
{
    if (!before(c->recover, c->send_unacknowledged) || ++c->duplicate_acks != 3)
        return;
    c->recover = c->send_max;
    c->slow_start_threshold = max32((c->send_max - c->send_unacknowledged) / 2, 2 * c->mss);
    c->congestion_window = c->slow_start_threshold;
    c->send_next = c->send_unacknowledged;
    want_flush(c);
}

/* False if the segment is to be ignored. */
static bool take_acknowledgement(struct connection *c, const struct segment *s)
{
    u32 acknowledgement = s->acknowledgement;

    if (before(c->send_max, acknowledgement)) {
        want_ack(c);
        return false;
    }
    if (before(c->send_unacknowledged, acknowledgement))
        advance(c, acknowledgement);
    else if (acknowledgement == c->send_unacknowledged && !s->bytes && !(s->flags & FIN) &&
             s->window == c->send_window && c->send_max != c->send_unacknowledged)
        count_duplicate(c);
    bool newer = before(c->window_sequence, s->sequence) ||
                 (c->window_sequence == s->sequence && !before(acknowledgement, c->window_acknowledgement));

    if (newer && !before(acknowledgement, c->send_unacknowledged)) {
        if (!c->send_window) {
            c->retries = 0; /* it answers our probes: it lives */
            if (s->window)
                c->send_next = c->send_unacknowledged; /* the probe's byte was not taken */
        }
        if (s->window > c->send_window)
            want_flush(c);
        c->send_window = s->window;
        c->window_sequence = s->sequence;
        c->window_acknowledgement = acknowledgement;
    }
    return true;
}

/* Our FIN was acknowledged: the states that wait for that. False if the connection ended. */
static bool fin_acknowledged(struct connection *c)
{
    if (!c->closing || c->send_unacknowledged != data_end(c) + 1)
        return true;
    switch (c->state) {
    case TCP_FIN_WAIT_1:
        c->state = TCP_FIN_WAIT_2;
        set_deadline(c, now_ns() + FIN_WAIT_2_NS);
        return true;
    case TCP_CLOSING:
        c->state = TCP_TIME_WAIT;
        set_deadline(c, now_ns() + TIME_WAIT_NS);
        return true;
    case TCP_LAST_ACK:
        release(c);
        return false;
    default:
        return true;
    }
}

static void take_data(struct connection *c, const struct segment *s)
{
    if (!s->bytes)
        return;
    c->receive_next += s->bytes;
    want_ack(c);
    if (c->closing)
        return; /* nobody reads any more */
    if (c->receive_end + s->bytes > RECEIVE_BYTES) {
        memmove(c->receive_buffer, c->receive_buffer + c->receive_start, c->receive_end - c->receive_start);
        c->receive_end -= c->receive_start;
        c->receive_start = 0;
    }
    memcpy(c->receive_buffer + c->receive_end, s->data, s->bytes);
    c->receive_end += s->bytes;
}

static void take_fin(struct connection *c)
{
    c->receive_next++;
    want_ack(c);
    switch (c->state) {
    case TCP_ESTABLISHED:
        c->state = TCP_CLOSE_WAIT;
        break;
    case TCP_FIN_WAIT_1:
        c->state = TCP_CLOSING;
        break;
    case TCP_FIN_WAIT_2:
        c->state = TCP_TIME_WAIT;
        set_deadline(c, now_ns() + TIME_WAIT_NS);
        break;
    default:
        break;
    }
}

/* A SYN, or a segment before our SYN was acknowledged. False if that ends its handling. */
static bool take_handshake(struct connection *c, const struct segment *s)
{
    if (s->flags & SYN) {
        if (c->state == TCP_SYN_RECEIVED && s->sequence == c->receive_first)
            send_segment(c, SYN | ACK, c->send_unacknowledged, 0);
        else
            want_ack(c); /* RFC 5961, section 4 */
        return false;
    }
    if (!(s->flags & ACK))
        return false;
    if (c->state == TCP_SYN_RECEIVED) {
        if (s->acknowledgement != c->send_next) {
            send_reset(s);
            return false;
        }
        c->state = TCP_ESTABLISHED;
        c->window_sequence = s->sequence;
        c->window_acknowledgement = s->acknowledgement;
        c->send_window = s->window;
    }
    return true;
}

static void take_reset(struct connection *c, const struct segment *s)
{
    if (s->sequence == c->receive_next)
        release(c);
    else if (!before(s->sequence, c->receive_next) && before(s->sequence, c->receive_edge))
        want_ack(c); /* RFC 5961, section 3 */
}

static void handle(struct connection *c, struct segment *s)
{
    if (s->flags & RST) {
        take_reset(c, s);
        return;
    }
    if (!take_handshake(c, s))
        return;
    memcpy(c->peer_mac, s->mac, 6);
    c->heard_ns = now_ns();
    bool gap = before(c->receive_next, s->sequence);

    cut_to_window(c, s);
    if (!take_acknowledgement(c, s) || !fin_acknowledged(c) || gap)
        return;
    if (c->state == TCP_ESTABLISHED || c->state == TCP_FIN_WAIT_1 || c->state == TCP_FIN_WAIT_2) {
        take_data(c, s);
        if (s->flags & FIN)
            take_fin(c);
    }
    service_input(c);
    if (c->state == TCP_CLOSE_WAIT && !c->closing && !c->filler_bytes && !service_has_request(c))
        tcp_close(c);
}

static u32 read_mss(const struct tcp_header *tcp, u32 header_bytes)
{
    const u8 *at = (const u8 *)(tcp + 1), *end = (const u8 *)tcp + header_bytes;

    while (at < end && *at != OPTION_END) {
        if (*at == OPTION_NOTHING) {
            at++;
            continue;
        }
        if (end - at < 2 || at[1] < 2 || at[1] > end - at)
            break;
        if (at[0] == OPTION_MSS && at[1] == 4)
            return max32(64, min32(OUR_MSS, (u32)at[2] << 8 | at[3]));
        at += at[1];
    }
    return 536;
}

void tcp_input(const u8 *frame, const struct ip_header *ip, const u8 *segment, u32 bytes)
{
    const struct tcp_header *tcp = (const void *)segment;
    u32 header_bytes = (u32)(tcp->offset >> 4) * 4;

    if (bytes < TCP_BYTES || header_bytes < TCP_BYTES || header_bytes > bytes ||
        checksum_end(checksum_add(checksum_pseudo(ip->source, ip->destination, PROTOCOL_TCP, bytes), tcp, bytes))) {
        tcp_statistics.dropped++;
        return;
    }
    struct segment s = {
        .sequence = swap32(tcp->sequence),
        .acknowledgement = swap32(tcp->acknowledgement),
        .window = swap16(tcp->window),
        .flags = tcp->flags,
        .peer_port = tcp->source,
        .peer_address = ip->source,
        .mac = frame + 6,
        .data = segment + header_bytes,
        .bytes = bytes - header_bytes,
    };

    tcp_statistics.segments_in++;
    struct connection *c = tcp->destination == our_port ? find(s.peer_address, s.peer_port) : 0;

    if (c && c->state == TCP_TIME_WAIT && (s.flags & SYN) && before(c->receive_next, s.sequence)) {
        release(c); /* the peer uses the port again */
        c = 0;
    }
    if (c) {
        handle(c, &s);
    } else if (tcp->destination == our_port && (s.flags & (SYN | ACK | RST)) == SYN) {
        s.mss = read_mss(tcp, header_bytes);
        accept_connection(&s);
    } else {
        send_reset(&s);
    }
}

/* --- for the service ----------------------------------------------------------------- */

u32 tcp_room_bytes(const struct connection *c)
{
    return SEND_BYTES - c->send_bytes;
}

void tcp_write(struct connection *c, const void *bytes, u32 count)
{
    u32 start = data_end(c) % SEND_BYTES;
    u32 first = min32(count, SEND_BYTES - start);

    memcpy(c->send_buffer + start, bytes, first);
    memcpy(c->send_buffer, (const u8 *)bytes + first, count - first);
    c->send_bytes += count;
    want_flush(c);
}

void tcp_consume(struct connection *c, u32 count)
{
    c->receive_start += count;
    if (c->receive_start == c->receive_end)
        c->receive_start = c->receive_end = 0;
    /* tell the peer when its window has opened by a good part (RFC 9293, section 3.8.6.2.2) */
    if (c->receive_next + window_bytes(c) - c->receive_edge >= RECEIVE_BYTES / 2)
        want_ack(c);
}

void tcp_close(struct connection *c)
{
    if (c->closing)
        return;
    c->closing = true;
    c->receive_start = c->receive_end = 0;
    want_flush(c);
}
