/* The ledger: an append-only list of (key, value), the last value of each key, and a
 * running hash over all of it. */
#ifndef LEDGER_H
#define LEDGER_H

#include "guest.h"

#define KEY_BYTES_MAX 64
#define VALUE_BYTES_MAX 400

struct ledger {
    u64 length; /* entries */
    u64 hash;   /* FNV-1a, 64 bits, over "KEY VALUE\n" of each entry in turn */
    bool journaled;
};
extern struct ledger ledger;

/* Takes all memory that is left. With the word `journal` on the command line, reads the
   entries on the disk. */
void ledger_init(void);
/* The hash that the ledger would have with one entry more. */
u64 ledger_hash_with(const char *key, u32 key_bytes, const char *value, u32 value_bytes);
/* Sets the last `bytes` of memory aside for another use, in place of what was set aside
   before. Null if the ledger holds too much already. */
void *ledger_spare(u64 bytes);
/* Appends. False if memory or disk is full: nothing has changed then. */
bool ledger_put(const char *key, u32 key_bytes, const char *value, u32 value_bytes);
/* The last value of a key, or null. */
const u8 *ledger_get(const char *key, u32 key_bytes, u32 *value_bytes);
u64 ledger_free_bytes(void);

#endif
