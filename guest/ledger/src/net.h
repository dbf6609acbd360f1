/* The network: device, Ethernet, ARP, IPv4, ICMP echo. TCP is in tcp.h. */
#ifndef NET_H
#define NET_H

#include "guest.h"

#define ETHERNET_BYTES 14
#define IP_BYTES 20
#define TCP_BYTES 20
#define FRAME_BYTES_MAX 1514
#define MTU 1500
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6

struct ip_header {
    u8 version_length, service;
    u16 total_bytes, id, fragment;
    u8 hops, protocol;
    u16 checksum;
    u32 source, destination;
};

extern u8 our_mac[6];
extern u32 our_address; /* in network order, as all addresses here */

/* Finds the device and reads ip=A.B.C.D from the command line. */
void net_init(void);
/* Handles up to `budget` received frames. True if there may be more. */
bool net_receive(u32 budget);
/* Announces our address (RFC 5227 section 3). */
void net_announce(void);
void text_put_address(struct text *text, u32 address);

/* A frame to fill, or null when the device holds all of them: then ask again after its
   next interrupt. Send it before taking another. */
u8 *net_take_frame(void);
/* Sends the frame taken last. */
void net_send_frame(u32 bytes);
/* Tells the device of the frames sent since the last call. */
void net_kick(void);

/* One's complement sum over bytes (RFC 1071), started with `sum`. `data` is at an even
   address. */
u64 checksum_add(u64 sum, const void *data, u32 bytes);
/* The checksum field's value for a sum, as it is stored. */
u16 checksum_end(u64 sum);
/* Sum of TCP's pseudo header, addresses in network order, length in host order. */
u64 checksum_pseudo(u32 source, u32 destination, u8 protocol, u32 bytes);

/* Writes Ethernet and IP headers for a packet of ours with `payload_bytes` after them. */
void ip_fill(u8 *frame, const u8 *mac, u32 destination, u8 protocol, u32 payload_bytes);

#endif
