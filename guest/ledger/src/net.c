/* The virtio network device, and what is not TCP on it.
 *
 * Replies go to the Ethernet address that the question came from: this host never
 * speaks first, and so needs neither an ARP table nor a gateway. */
#include "net.h"
#include "tcp.h"
#include "virtio.h"

#define FEATURE_MAC (1ull << 5)
#define NET_HEADER_BYTES 12
#define SLOT_BYTES 2048
/* The device's header starts here in a slot: so the IP header is aligned to four bytes. */
#define SLOT_HEADER 2
#define SLOT_FRAME (SLOT_HEADER + NET_HEADER_BYTES)
#define TYPE_IP 0x0800
#define TYPE_ARP 0x0806
#define ARP_BYTES 28

struct arp_packet {
    u16 hardware, protocol;
    u8 hardware_bytes, protocol_bytes;
    u16 operation;
    u8 sender_mac[6];
    u8 sender_address[4];
    u8 target_mac[6];
    u8 target_address[4];
};

struct icmp_header {
    u8 type, code;
    u16 checksum;
};

u8 our_mac[6];
u32 our_address;

static struct virtio_device device;
static struct virtq receive_queue, send_queue;
static u8 *receive_slots, *send_slots;
static u16 send_free[QUEUE_MAX]; /* numbers of the slots that the device does not hold */
static u32 send_free_count;

static bool parse_address(const char *at, const char *end, u32 *address)
{
    u8 bytes[4];

    for (int i = 0; i < 4; i++) {
        u64 value;

        if (i && (at == end || *at++ != '.'))
            return false;
        if (!parse_u64(&at, end, &value) || value > 255)
            return false;
        bytes[i] = (u8)value;
    }
    memcpy(address, bytes, 4);
    return at == end || *at == '/'; /* a prefix length is of no use here */
}

void text_put_address(struct text *text, u32 address)
{
    for (int i = 0; i < 4; i++) {
        if (i)
            text_put(text, ".");
        text_put_u64(text, address >> 8 * i & 255);
    }
}

static void set_up_queues(void)
{
    virtio_open_queue(&device, &receive_queue, 0);
    virtio_open_queue(&device, &send_queue, 1);
    receive_slots = heap_take((u64)receive_queue.size * SLOT_BYTES);
    send_slots = heap_take((u64)send_queue.size * SLOT_BYTES);
    for (u16 i = 0; i < receive_queue.size; i++) {
        receive_queue.descriptors[i] = (struct virtq_descriptor){
            .address = (u64)receive_slots + i * SLOT_BYTES + SLOT_HEADER,
            .bytes = NET_HEADER_BYTES + FRAME_BYTES_MAX,
            .flags = DESCRIPTOR_WRITE,
        };
        virtq_offer(&receive_queue, i);
    }
    for (u16 i = 0; i < send_queue.size; i++) {
        u8 *slot = send_slots + i * SLOT_BYTES;

        memset(slot, 0, SLOT_FRAME); /* no offload, for ever */
        send_queue.descriptors[i].address = (u64)slot + SLOT_HEADER;
        send_free[send_free_count++] = i;
    }
    send_queue.available->flags = AVAIL_NO_INTERRUPT;
}

void net_init(void)
{
    const char *end, *value = argument("ip", &end);
    const char *standard = "10.0.2.15";

    if (!value) {
        value = standard;
        end = standard + strlen(standard);
    }
    if (!parse_address(value, end, &our_address))
        power_off("ip= wants an address as 10.0.2.15", true);
    if (!virtio_open(&device, VIRTIO_NET, VIRTIO_F_VERSION_1 | FEATURE_MAC))
        power_off("no virtio network device", true);
    for (int i = 0; i < 6; i++)
        our_mac[i] = virtio_config(&device)[i];
    set_up_queues();
    virtio_start(&device);
    virtq_kick(&receive_queue);
}

/* --- sending ----------------------------------------------------------------------- */

static void reclaim_sent(void)
{
    u16 slot;
    u32 bytes;

    while (send_free_count < send_queue.size && virtq_take(&send_queue, &slot, &bytes))
        send_free[send_free_count++] = slot;
}

u8 *net_take_frame(void)
{
    if (send_free_count <= send_queue.size / 2u)
        reclaim_sent();
    if (!send_free_count) {
        /* ask for an interrupt; what was completed before the device saw that is found here */
        send_queue.available->flags = 0;
        asm volatile("fence rw, rw" ::: "memory");
        reclaim_sent();
        if (!send_free_count)
            return 0;
    }
    send_queue.available->flags = AVAIL_NO_INTERRUPT;
    return send_slots + send_free[send_free_count - 1] * SLOT_BYTES + SLOT_FRAME;
}

void net_send_frame(u32 bytes)
{
    u16 slot = send_free[--send_free_count];

    send_queue.descriptors[slot].bytes = NET_HEADER_BYTES + bytes;
    virtq_offer(&send_queue, slot);
}

void net_kick(void)
{
    virtq_kick(&send_queue);
}

/* --- checksums --------------------------------------------------------------------- */

u64 checksum_add(u64 sum, const void *data, u32 bytes)
{
    const u8 *at = data;

    if (((u64)at & 2) && bytes >= 2) {
        sum += *(const u16 *)at;
        at += 2;
        bytes -= 2;
    }
    for (; bytes >= 16; bytes -= 16, at += 16) {
        const u32 *words = (const u32 *)at;

        sum += (u64)words[0] + words[1] + words[2] + words[3];
    }
    for (; bytes >= 2; bytes -= 2, at += 2)
        sum += *(const u16 *)at;
    if (bytes)
        sum += *at;
    return sum;
}

u16 checksum_end(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (u16)~sum;
}

u64 checksum_pseudo(u32 source, u32 destination, u8 protocol, u32 bytes)
{
    return (u64)source + destination + swap16(protocol) + swap16((u16)bytes);
}

/* --- Ethernet, ARP, IP, ICMP ------------------------------------------------------- */

static void ethernet_fill(u8 *frame, const u8 *mac, u16 type)
{
    memcpy(frame, mac, 6);
    memcpy(frame + 6, our_mac, 6);
    frame[12] = (u8)(type >> 8);
    frame[13] = (u8)type;
}

void ip_fill(u8 *frame, const u8 *mac, u32 destination, u8 protocol, u32 payload_bytes)
{
    struct ip_header *ip = (void *)(frame + ETHERNET_BYTES);

    ethernet_fill(frame, mac, TYPE_IP);
    *ip = (struct ip_header){
        .version_length = 0x45,
        .total_bytes = swap16((u16)(IP_BYTES + payload_bytes)),
        .fragment = swap16(0x4000), /* never fragment, and so no id is needed (RFC 6864) */
        .hops = 64,
        .protocol = protocol,
        .source = our_address,
        .destination = destination,
    };
    ip->checksum = checksum_end(checksum_add(0, ip, IP_BYTES));
}

static void arp_send(u16 operation, const u8 *mac, const u8 *target_mac, const void *target_address)
{
    u8 *frame = net_take_frame();

    if (!frame)
        return;
    struct arp_packet *arp = (void *)(frame + ETHERNET_BYTES);

    ethernet_fill(frame, mac, TYPE_ARP);
    arp->hardware = swap16(1);
    arp->protocol = swap16(TYPE_IP);
    arp->hardware_bytes = 6;
    arp->protocol_bytes = 4;
    arp->operation = swap16(operation);
    memcpy(arp->sender_mac, our_mac, 6);
    memcpy(arp->sender_address, &our_address, 4);
    memcpy(arp->target_mac, target_mac, 6);
    memcpy(arp->target_address, target_address, 4);
    net_send_frame(ETHERNET_BYTES + ARP_BYTES);
}

void net_announce(void)
{
    static const u8 everyone[6] = {255, 255, 255, 255, 255, 255};
    static const u8 nobody[6];

    arp_send(1, everyone, nobody, &our_address);
    net_kick();
}

static void arp_input(const u8 *frame, u32 bytes)
{
    const struct arp_packet *arp = (const void *)(frame + ETHERNET_BYTES);
    u32 sender;

    if (bytes < ETHERNET_BYTES + ARP_BYTES || arp->protocol != swap16(TYPE_IP) ||
        arp->hardware_bytes != 6 || arp->protocol_bytes != 4)
        return;
    memcpy(&sender, arp->sender_address, 4);
    tcp_peer_moved(sender, arp->sender_mac);
    if (arp->operation == swap16(1) && !memcmp(arp->target_address, &our_address, 4))
        arp_send(2, arp->sender_mac, arp->sender_mac, arp->sender_address);
}

static void icmp_input(const u8 *frame, const struct ip_header *ip, const u8 *payload, u32 bytes)
{
    const struct icmp_header *request = (const void *)payload;
    u8 *reply;

    if (bytes < 8 || request->type != 8 || checksum_end(checksum_add(0, payload, bytes)) ||
        !(reply = net_take_frame()))
        return;
    struct icmp_header *icmp = (void *)(reply + ETHERNET_BYTES + IP_BYTES);

    ip_fill(reply, frame + 6, ip->source, PROTOCOL_ICMP, bytes);
    memcpy(icmp, payload, bytes);
    icmp->type = 0;
    icmp->checksum = 0;
    icmp->checksum = checksum_end(checksum_add(0, icmp, bytes));
    net_send_frame(ETHERNET_BYTES + IP_BYTES + bytes);
}

static void ip_input(const u8 *frame, u32 frame_bytes)
{
    const struct ip_header *ip = (const void *)(frame + ETHERNET_BYTES);
    u32 room = frame_bytes - ETHERNET_BYTES;

    if (frame_bytes < ETHERNET_BYTES + IP_BYTES || ip->version_length >> 4 != 4)
        return;
    u32 header_bytes = (ip->version_length & 15) * 4u;
    u32 total_bytes = swap16(ip->total_bytes);

    if (header_bytes < IP_BYTES || total_bytes < header_bytes || total_bytes > room ||
        ip->destination != our_address || (ip->fragment & swap16(0x3fff)) ||
        checksum_end(checksum_add(0, ip, header_bytes)))
        return;
    const u8 *payload = (const u8 *)ip + header_bytes;

    if (ip->protocol == PROTOCOL_TCP)
        tcp_input(frame, ip, payload, total_bytes - header_bytes);
    else if (ip->protocol == PROTOCOL_ICMP)
        icmp_input(frame, ip, payload, total_bytes - header_bytes);
}

bool net_receive(u32 budget)
{
    u16 slot;
    u32 bytes;

    while (budget && virtq_take(&receive_queue, &slot, &bytes)) {
        const u8 *frame = receive_slots + slot * SLOT_BYTES + SLOT_FRAME;
        u16 type = (u16)(frame[12] << 8 | frame[13]);

        budget--;
        if (bytes >= NET_HEADER_BYTES + ETHERNET_BYTES) {
            if (type == TYPE_IP)
                ip_input(frame, bytes - NET_HEADER_BYTES);
            else if (type == TYPE_ARP)
                arp_input(frame, bytes - NET_HEADER_BYTES);
        }
        virtq_offer(&receive_queue, slot);
    }
    /* returning the slots by the dozen spares the device most notifications */
    if ((u16)(receive_queue.available_next - receive_queue.available->index) >= receive_queue.size / 8u)
        virtq_kick(&receive_queue);
    return !budget;
}
