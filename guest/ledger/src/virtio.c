#include "virtio.h"

#define FIRST_SLOT 0x10001000ull
#define SLOT_BYTES 0x1000
#define FIRST_INTERRUPT 1
#define MAGIC 0x74726976

/* registers, as indices of words */
enum {
    R_MAGIC = 0x00 / 4,
    R_VERSION = 0x04 / 4,
    R_DEVICE = 0x08 / 4,
    R_DEVICE_FEATURES = 0x10 / 4,
    R_DEVICE_FEATURES_SELECT = 0x14 / 4,
    R_DRIVER_FEATURES = 0x20 / 4,
    R_DRIVER_FEATURES_SELECT = 0x24 / 4,
    R_QUEUE_SELECT = 0x30 / 4,
    R_QUEUE_SIZE_MAX = 0x34 / 4,
    R_QUEUE_SIZE = 0x38 / 4,
    R_QUEUE_READY = 0x44 / 4,
    R_QUEUE_NOTIFY = 0x50 / 4,
    R_INTERRUPT_STATUS = 0x60 / 4,
    R_INTERRUPT_ACKNOWLEDGE = 0x64 / 4,
    R_STATUS = 0x70 / 4,
    R_QUEUE_DESCRIPTORS = 0x80 / 4,
    R_QUEUE_DRIVER = 0x90 / 4,
    R_QUEUE_DEVICE = 0xa0 / 4,
    R_CONFIG = 0x100 / 4,
};

enum { S_ACKNOWLEDGE = 1, S_DRIVER = 2, S_DRIVER_OK = 4, S_FEATURES_OK = 8 };

static struct virtio_device *started[VIRTIO_SLOTS];

static void fence(void)
{
    asm volatile("fence iorw, iorw" ::: "memory");
}

static bool find(struct virtio_device *device, u32 kind)
{
    for (u32 slot = 0; slot < VIRTIO_SLOTS; slot++) {
        volatile u32 *registers = (volatile u32 *)(FIRST_SLOT + slot * SLOT_BYTES);

        if (registers[R_MAGIC] != MAGIC || registers[R_DEVICE] != kind)
            continue;
        if (registers[R_VERSION] != 2)
            power_off("a legacy virtio device; in QEMU give -global virtio-mmio.force-legacy=false", true);
        device->registers = registers;
        device->interrupt = FIRST_INTERRUPT + slot;
        return true;
    }
    return false;
}

bool virtio_open(struct virtio_device *device, u32 kind, u64 features)
{
    if (!find(device, kind))
        return false;
    volatile u32 *registers = device->registers;

    registers[R_STATUS] = 0;
    registers[R_STATUS] = S_ACKNOWLEDGE;
    registers[R_STATUS] = S_ACKNOWLEDGE | S_DRIVER;
    device->features = 0;
    for (u32 half = 0; half < 2; half++) {
        registers[R_DEVICE_FEATURES_SELECT] = half;
        registers[R_DRIVER_FEATURES_SELECT] = half;
        u32 both = registers[R_DEVICE_FEATURES] & (u32)(features >> 32 * half);

        registers[R_DRIVER_FEATURES] = both;
        device->features |= (u64)both << 32 * half;
    }
    registers[R_STATUS] = S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK;
    if (!(registers[R_STATUS] & S_FEATURES_OK))
        power_off("a virtio device refuses virtio 1.0", true);
    return true;
}

static void set_address(volatile u32 *registers, u32 index, const volatile void *address)
{
    registers[index] = (u32)(u64)address;
    registers[index + 1] = (u32)((u64)address >> 32);
}

void virtio_open_queue(struct virtio_device *device, struct virtq *queue, u32 number)
{
    volatile u32 *registers = device->registers;
    u64 descriptors_bytes = QUEUE_MAX * sizeof *queue->descriptors;
    u8 *memory = heap_take(descriptors_bytes + 2048 + sizeof *queue->used);

    memset(memory, 0, descriptors_bytes + 2048 + sizeof *queue->used);
    queue->device = device;
    queue->number = number;
    queue->descriptors = (void *)memory;
    queue->available = (void *)(memory + descriptors_bytes);
    queue->used = (void *)(memory + descriptors_bytes + 2048);

    registers[R_QUEUE_SELECT] = number;
    u32 size = registers[R_QUEUE_SIZE_MAX];

    if (!size)
        power_off("a virtio device lacks a queue", true);
    queue->size = (u16)(size < QUEUE_MAX ? size : QUEUE_MAX);
    registers[R_QUEUE_SIZE] = queue->size;
    set_address(registers, R_QUEUE_DESCRIPTORS, queue->descriptors);
    set_address(registers, R_QUEUE_DRIVER, queue->available);
    set_address(registers, R_QUEUE_DEVICE, queue->used);
    registers[R_QUEUE_READY] = 1;
}

void virtio_start(struct virtio_device *device)
{
    started[device->interrupt - FIRST_INTERRUPT] = device;
    interrupt_enable(device->interrupt);
    fence();
    device->registers[R_STATUS] = S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK;
}

void virtio_clear_interrupts(void)
{
    u32 source;

    while ((source = interrupt_claim())) {
        u32 slot = source - FIRST_INTERRUPT;

        if (slot < VIRTIO_SLOTS && started[slot]) {
            volatile u32 *registers = started[slot]->registers;

            registers[R_INTERRUPT_ACKNOWLEDGE] = registers[R_INTERRUPT_STATUS];
        }
        interrupt_done(source);
    }
}

volatile u8 *virtio_config(struct virtio_device *device)
{
    return (volatile u8 *)(device->registers + R_CONFIG);
}

void virtq_offer(struct virtq *queue, u16 head)
{
    queue->available->ring[queue->available_next++ % queue->size] = head;
}

void virtq_kick(struct virtq *queue)
{
    if (queue->available->index == queue->available_next)
        return;
    fence();
    queue->available->index = queue->available_next;
    fence();
    if (!(queue->used->flags & USED_NO_NOTIFY))
        queue->device->registers[R_QUEUE_NOTIFY] = queue->number;
}

bool virtq_take(struct virtq *queue, u16 *head, u32 *bytes)
{
    if (queue->used->index == queue->used_seen)
        return false;
    fence();
    u32 slot = queue->used_seen++ % queue->size;

    *head = (u16)queue->used->ring[slot].id;
    *bytes = queue->used->ring[slot].bytes;
    return true;
}
