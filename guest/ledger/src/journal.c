#include "journal.h"
#include "ledger.h"
#include "virtio.h"

#define FEATURE_FLUSH (1ull << 9)
#define SECTOR_BYTES 512
#define BATCH_SECTORS 64
#define MAGIC 0x314c414e52554f4aull /* "JOURNAL1" */
#define ENTRY_MAGIC 0x59525445u     /* "ETRY" */

enum { REQUEST_READ = 0, REQUEST_WRITE = 1, REQUEST_FLUSH = 4 };

struct request_header {
    u32 type, reserved;
    u64 sector;
};

struct entry {
    u32 magic;
    u16 key_bytes, value_bytes;
    u64 length; /* of the ledger, with this entry */
    u64 hash;
    char text[KEY_BYTES_MAX + VALUE_BYTES_MAX];
};
_Static_assert(sizeof(struct entry) <= SECTOR_BYTES, "an entry is one sector");

static struct virtio_device device;
static struct virtq queue;
static struct request_header *header;
static volatile u8 *status;
static u8 *batch; /* BATCH_SECTORS sectors */
static u32 batch_sectors;
static u64 next_sector, sectors;

static bool transfer(u32 type, u64 sector, u32 bytes)
{
    u16 flags = type == REQUEST_READ ? DESCRIPTOR_WRITE : 0, done;
    u32 length;

    *header = (struct request_header){.type = type, .sector = sector};
    *status = 255;
    queue.descriptors[0] = (struct virtq_descriptor){(u64)header, sizeof *header, DESCRIPTOR_NEXT, bytes ? 1 : 2};
    queue.descriptors[1] = (struct virtq_descriptor){(u64)batch, bytes, (u16)(flags | DESCRIPTOR_NEXT), 2};
    queue.descriptors[2] = (struct virtq_descriptor){(u64)status, 1, DESCRIPTOR_WRITE, 0};
    virtq_offer(&queue, 0);
    virtq_kick(&queue);
    while (!virtq_take(&queue, &done, &length)) {
        wait_until(NEVER);
        /* clears the network's too: its ring is looked at before the next sleep */
        virtio_clear_interrupts();
    }
    return *status == 0;
}

static void must_transfer(u32 type, u64 sector, u32 bytes)
{
    if (!transfer(type, sector, bytes))
        power_off("the disk refuses a request", true);
}

/* Passes on the entries of the batch just read. False at the first that is none. */
static bool take_batch(journal_reader *take, u32 count)
{
    for (u32 i = 0; i < count; i++) {
        const struct entry *entry = (const void *)(batch + i * SECTOR_BYTES);

        if (entry->magic != ENTRY_MAGIC || entry->length != ledger.length + 1 ||
            entry->key_bytes > KEY_BYTES_MAX || entry->value_bytes > VALUE_BYTES_MAX)
            return false;
        const char *value = entry->text + entry->key_bytes;

        if (entry->hash != ledger_hash_with(entry->text, entry->key_bytes, value, entry->value_bytes))
            return false;
        if (!take(entry->text, entry->key_bytes, value, entry->value_bytes))
            power_off("the journal does not fit into memory", true);
        next_sector++;
    }
    return true;
}

static u32 batch_at(u64 sector)
{
    return sectors - sector < BATCH_SECTORS ? (u32)(sectors - sector) : BATCH_SECTORS;
}

static void flush(void)
{
    if (device.features & FEATURE_FLUSH) /* else each write is through when it is done */
        must_transfer(REQUEST_FLUSH, 0, 0);
}

void journal_recover(journal_reader *take)
{
    bool more = true;

    for (next_sector = 1; more && next_sector < sectors;) {
        u32 count = batch_at(next_sector);

        must_transfer(REQUEST_READ, next_sector, count * SECTOR_BYTES);
        more = take_batch(take, count);
    }
    /* A torn batch may have left entries behind a gap. They were never answered, and must
       not continue the journal one day. */
    if (next_sector < sectors) {
        memset(batch, 0, BATCH_SECTORS * SECTOR_BYTES);
        must_transfer(REQUEST_WRITE, next_sector, batch_at(next_sector) * SECTOR_BYTES);
        flush();
    }
}

static bool is_blank(void)
{
    for (u32 i = 0; i < SECTOR_BYTES; i++)
        if (batch[i])
            return false;
    return true;
}

void journal_open(void)
{
    if (!virtio_open(&device, VIRTIO_BLOCK, VIRTIO_F_VERSION_1 | FEATURE_FLUSH))
        power_off("journal: there is no disk", true);
    virtio_open_queue(&device, &queue, 0);
    virtio_start(&device);
    sectors = *(volatile u64 *)virtio_config(&device);
    u8 *memory = heap_take(4096 + BATCH_SECTORS * SECTOR_BYTES);

    header = (void *)memory;
    status = memory + sizeof *header;
    batch = memory + 4096;
    if (sectors < 2)
        power_off("journal: the disk is too small", true);
    must_transfer(REQUEST_READ, 0, SECTOR_BYTES);
    if (is_blank()) {
        *(u64 *)batch = MAGIC;
        must_transfer(REQUEST_WRITE, 0, SECTOR_BYTES);
    } else if (*(u64 *)batch != MAGIC) {
        power_off("journal: something else is on the disk", true);
    }
}

bool journal_has_room(void)
{
    return next_sector + batch_sectors < sectors;
}

void journal_append(const char *key, u32 key_bytes, const char *value, u32 value_bytes)
{
    struct entry *entry = (void *)(batch + batch_sectors++ * SECTOR_BYTES);

    memset(entry, 0, SECTOR_BYTES);
    *entry = (struct entry){
        .magic = ENTRY_MAGIC,
        .key_bytes = (u16)key_bytes,
        .value_bytes = (u16)value_bytes,
        .length = ledger.length,
        .hash = ledger.hash,
    };
    memcpy(entry->text, key, key_bytes);
    memcpy(entry->text + key_bytes, value, value_bytes);
    if (batch_sectors == BATCH_SECTORS)
        journal_commit();
}

void journal_commit(void)
{
    if (!batch_sectors)
        return;
    must_transfer(REQUEST_WRITE, next_sector, batch_sectors * SECTOR_BYTES);
    flush();
    next_sector += batch_sectors;
    batch_sectors = 0;
}
