/* The ledger on a disk: sector 0 says what this is, each further sector is one entry.
 *
 * An entry names its number and the ledger's hash after it, so the end of the journal is
 * the first sector that does not continue what was read. Entries are gathered during a
 * round of the main loop, then written and flushed before any answer leaves. */
#ifndef JOURNAL_H
#define JOURNAL_H

#include "guest.h"

typedef bool journal_reader(const char *key, u32 key_bytes, const char *value, u32 value_bytes);

/* Opens the disk. A blank one becomes an empty journal. Power-off if there is no disk, or
   something else is on it. */
void journal_open(void);
/* Passes each entry on the disk to `take`. */
void journal_recover(journal_reader *take);
bool journal_has_room(void);
/* Adds the ledger's newest entry. */
void journal_append(const char *key, u32 key_bytes, const char *value, u32 value_bytes);
/* Returns when all entries are on the disk. */
void journal_commit(void);

#endif
