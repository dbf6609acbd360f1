#include "ledger.h"
#include "journal.h"

#define HASH_START 0xcbf29ce484222325ull
#define HASH_FACTOR 0x100000001b3ull
#define SLOTS_MAX (1u << 20)

/* In memory: this, then the key, then the value, each record at a multiple of eight. */
struct record {
    u16 key_bytes, value_bytes;
};

/* The index: open addressing over the keys. A slot is zero while free. */
struct slot {
    u32 tag;    /* part of the key's hash, never zero */
    u32 record; /* place of the key's last record, in units of eight bytes: 32 GiB in all */
};

struct ledger ledger = {.hash = HASH_START};

static struct slot *slots;
static u32 slots_count, slots_used;
static u8 *records, *records_at, *records_end, *memory_end;

static u64 hash_bytes(u64 hash, const void *bytes, u32 count)
{
    const u8 *at = bytes;

    while (count--)
        hash = (hash ^ *at++) * HASH_FACTOR;
    return hash;
}

static struct record *record_of(const struct slot *slot)
{
    return (struct record *)(records + (u64)slot->record * 8);
}

static bool key_is(const struct slot *slot, const char *key, u32 key_bytes)
{
    const struct record *record = record_of(slot);

    return record->key_bytes == key_bytes && !memcmp(record + 1, key, key_bytes);
}

/* The key's slot, or the free one where it belongs. */
static struct slot *find(const char *key, u32 key_bytes, u32 *tag)
{
    u64 hash = hash_bytes(HASH_START, key, key_bytes);

    hash ^= hash >> 32; /* FNV's low bits alone are weak for short keys */
    *tag = (u32)(hash >> 16) | 1;
    for (u32 i = (u32)hash & (slots_count - 1);; i = (i + 1) & (slots_count - 1)) {
        struct slot *slot = slots + i;

        if (!slot->tag || (slot->tag == *tag && key_is(slot, key, key_bytes)))
            return slot;
    }
}

static u32 record_bytes(u32 key_bytes, u32 value_bytes)
{
    return (u32)(sizeof(struct record) + key_bytes + value_bytes + 7) & ~7u;
}

u64 ledger_hash_with(const char *key, u32 key_bytes, const char *value, u32 value_bytes)
{
    u64 hash = hash_bytes(ledger.hash, key, key_bytes);

    hash = (hash ^ ' ') * HASH_FACTOR;
    hash = hash_bytes(hash, value, value_bytes);
    return (hash ^ '\n') * HASH_FACTOR;
}

/* Appends to memory, not to the journal. */
static bool append(const char *key, u32 key_bytes, const char *value, u32 value_bytes)
{
    u32 tag, bytes = record_bytes(key_bytes, value_bytes);
    struct slot *slot = find(key, key_bytes, &tag);

    if ((u64)(records_end - records_at) < bytes || (!slot->tag && slots_used >= slots_count / 4 * 3))
        return false;
    if ((u64)(records_at - records) / 8 > 0xffffffff)
        return false;
    struct record *record = (struct record *)records_at;
    u8 *text = (u8 *)(record + 1);

    *record = (struct record){(u16)key_bytes, (u16)value_bytes};
    memcpy(text, key, key_bytes);
    memcpy(text + key_bytes, value, value_bytes);
    records_at += bytes;
    if (!slot->tag)
        slots_used++;
    slot->tag = tag;
    slot->record = (u32)(((u8 *)record - records) / 8);
    ledger.hash = ledger_hash_with(key, key_bytes, value, value_bytes);
    ledger.length++;
    return true;
}

bool ledger_put(const char *key, u32 key_bytes, const char *value, u32 value_bytes)
{
    if (ledger.journaled && !journal_has_room())
        return false;
    if (!append(key, key_bytes, value, value_bytes))
        return false;
    if (ledger.journaled)
        journal_append(key, key_bytes, value, value_bytes);
    return true;
}

const u8 *ledger_get(const char *key, u32 key_bytes, u32 *value_bytes)
{
    u32 tag;
    const struct slot *slot = find(key, key_bytes, &tag);

    if (!slot->tag)
        return 0;
    const struct record *record = record_of(slot);

    *value_bytes = record->value_bytes;
    return (const u8 *)(record + 1) + record->key_bytes;
}

u64 ledger_free_bytes(void)
{
    return (u64)(records_end - records_at);
}

void *ledger_spare(u64 bytes)
{
    bytes = (bytes + 4095) & ~4095ull;
    if (bytes > (u64)(memory_end - records_at))
        return 0;
    records_end = memory_end - bytes;
    return records_end;
}

void ledger_init(void)
{
    const char *end;
    bool journal = argument("journal", &end);

    if (journal)
        journal_open();
    u64 bytes = heap_left_bytes();

    if (bytes < 4 * MIB)
        power_off("not enough memory", true);
    slots_count = SLOTS_MAX;
    while (slots_count * sizeof *slots > bytes / 16)
        slots_count /= 2;
    slots = heap_take(slots_count * sizeof *slots);
    memset(slots, 0, slots_count * sizeof *slots);
    bytes = heap_left_bytes() & ~4095ull;
    records = records_at = heap_take(bytes);
    records_end = memory_end = records + bytes;
    if (journal) {
        journal_recover(append);
        ledger.journaled = true;
    }
}
