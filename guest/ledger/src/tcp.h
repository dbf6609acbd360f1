/* A TCP server (RFC 9293) for many connections.
 *
 * Segments out of order are dropped and asked for again; the sender has slow start,
 * fast retransmit and a timer with measured round trips (RFC 5681, RFC 6298). Nothing
 * is sent while segments are handled: tcp_flush does, once per round of the main loop,
 * so that answers carry acknowledgements and a disk journal can be flushed first. */
#ifndef TCP_H
#define TCP_H

#include "net.h"

#define CONNECTIONS_MAX 128
#define RECEIVE_BYTES 16384
#define SEND_BYTES 32768 /* a power of two */

/*   free -> SYN_RECEIVED -> ESTABLISHED -> CLOSE_WAIT -> LAST_ACK -> free
 *                                |
 *                           FIN_WAIT_1 -> FIN_WAIT_2 -> TIME_WAIT -> free
 *                                +------> CLOSING ---------^
 * A reset, or a peer silent for too long, leads from each of them to free. */
enum tcp_state {
    TCP_FREE,
    TCP_SYN_RECEIVED,
    TCP_ESTABLISHED,
    TCP_CLOSE_WAIT,
    TCP_LAST_ACK,
    TCP_FIN_WAIT_1,
    TCP_FIN_WAIT_2,
    TCP_CLOSING,
    TCP_TIME_WAIT,
};

struct connection {
    enum tcp_state state;
    bool flush_wanted; /* is in the list of tcp_flush */
    bool ack_wanted;
    bool closing; /* send a FIN after what is in the buffer */
    bool probe;   /* the peer's window is closed: send a byte to hear of it */
    bool measuring;

    u32 peer_address;
    u16 peer_port; /* in network order */
    u8 peer_mac[6];
    u32 mss;

    /* received and not yet consumed: receive_buffer[receive_start .. receive_end] */
    u8 *receive_buffer;
    u32 receive_start, receive_end;
    u32 receive_first; /* the peer's first sequence number */
    u32 receive_next;
    u32 receive_edge; /* right edge of the window we told the peer */

    /* a ring: the byte with sequence number s is at send_buffer[s % SEND_BYTES] */
    u8 *send_buffer;
    u32 send_start; /* sequence number of the oldest byte in the ring */
    u32 send_bytes; /* in the ring */
    u32 send_unacknowledged, send_next, send_max;
    u32 send_window, window_sequence, window_acknowledgement;
    u32 congestion_window, slow_start_threshold;
    u32 duplicate_acks;
    u32 recover; /* what was sent up to here may have been sent twice */

    u64 heard_ns;    /* when the peer last sent something */
    u64 deadline_ns; /* of retransmission or of the state */
    u64 timeout_ns;
    u64 round_trip_ns, round_trip_variance_ns;
    u64 measure_start_ns;
    u32 measure_sequence;
    u32 retries;

    u64 filler_bytes; /* the service's: still to be sent of an ECHO */
};

struct tcp_statistics {
    u64 connections, accepted, segments_in, segments_out, retransmissions, dropped;
};
extern struct tcp_statistics tcp_statistics;

void tcp_init(void);
void tcp_input(const u8 *frame, const struct ip_header *ip, const u8 *segment, u32 bytes);
/* The Ethernet address of a peer is now this one. */
void tcp_peer_moved(u32 address, const u8 *mac);
/* Handles deadlines that are past; the next one is tcp_deadline(). */
void tcp_timers(u64 now);
u64 tcp_deadline(void);
/* Sends what is due. */
void tcp_flush(void);

/* --- for the service ---------------------------------------------------------------- */

/* How much more can be written now. */
u32 tcp_room_bytes(const struct connection *connection);
/* Queues bytes for sending; never more than tcp_room_bytes. */
void tcp_write(struct connection *connection, const void *bytes, u32 count);
/* The first `count` received bytes were used. */
void tcp_consume(struct connection *connection, u32 count);
/* Closes after what was written. */
void tcp_close(struct connection *connection);

#endif
