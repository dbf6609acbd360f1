/* Loads besides the ledger: a memory dirtier, a CPU burner, a benchmark. The first two
 * work in short steps of the main loop, so that the network stays served. */
#ifndef LOAD_H
#define LOAD_H

#include "guest.h"

/* Reads dirty=SET_MIB:RATE_MIB_S[:sparse] and burn[=PERCENT] from the command line. */
void load_init(void);
/* Rewrites RATE_MIB_S MiB of 4 KiB pages per second, round and round in SET_MIB MiB; sparse:
   64 bytes of each page. 0:0 stops it. Returns what is wrong, or null. */
const char *load_dirty(u64 set_mib, u64 rate_mib_s, bool sparse);
/* Keeps the hart busy for PERCENT of each 10 ms. Returns what is wrong, or null. */
const char *load_burn(u64 percent);
u64 load_dirty_pages(void);
/* Works a little if it is time to. Returns when to be called again: at once if 0. */
u64 load_step(u64 now);

/* bench.c: the work of a benchmark program, each part timed on the console. */
void bench(u64 scale);

#endif
