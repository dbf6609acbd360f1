/* virtio over memory-mapped registers, version 2 (virtio 1.2, sections 2.7 and 4.2). */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "guest.h"

#define VIRTIO_SLOTS 8
#define VIRTIO_NET 1
#define VIRTIO_BLOCK 2
#define VIRTIO_F_VERSION_1 (1ull << 32)

#define QUEUE_MAX 256
#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2 /* the device writes */
#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1

struct virtq_descriptor {
    u64 address;
    u32 bytes;
    u16 flags, next;
};

struct virtq_available {
    volatile u16 flags, index;
    volatile u16 ring[QUEUE_MAX];
};

struct virtq_used {
    volatile u16 flags, index;
    struct {
        volatile u32 id, bytes;
    } ring[QUEUE_MAX];
};

struct virtio_device {
    volatile u32 *registers;
    u32 interrupt;
    u64 features; /* negotiated */
};

struct virtq {
    struct virtio_device *device;
    u32 number; /* which queue of the device */
    u16 size;
    u16 used_seen; /* how far the used ring was read */
    u16 available_next;
    struct virtq_descriptor *descriptors;
    struct virtq_available *available;
    struct virtq_used *used;
};

/* Finds the first device of this kind and negotiates `features`, of which VERSION_1 must
   be there. False if there is no such device. Power-off if it is a legacy one. */
bool virtio_open(struct virtio_device *device, u32 kind, u64 features);
/* Sets up queue `number` with at most QUEUE_MAX descriptors. */
void virtio_open_queue(struct virtio_device *device, struct virtq *queue, u32 number);
/* The queues are ready: the device may start. */
void virtio_start(struct virtio_device *device);
/* Clears all pending interrupts of the devices that were started. Look at their queues
   afterwards: what they do from then on raises the interrupt again. */
void virtio_clear_interrupts(void);
volatile u8 *virtio_config(struct virtio_device *device);

/* Makes a descriptor chain available. virtq_kick then tells the device. */
void virtq_offer(struct virtq *queue, u16 head);
void virtq_kick(struct virtq *queue);
/* Takes the next used chain. False if there is none. */
bool virtq_take(struct virtq *queue, u16 *head, u32 *bytes);

#endif
