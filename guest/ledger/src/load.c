#include "load.h"
#include "ledger.h"

#define PERIOD_NS (10 * NS_PER_MS)
#define PAGE_BYTES 4096
#define SPARSE_BYTES 64
#define PAGES_PER_STEP 2
#define BURN_ROUNDS_PER_STEP 2000
/* A machine that could not keep up does not make up for more than this. */
#define CATCH_UP_NS (NS_PER_S / 4)

static struct {
    u64 *set;
    u64 set_pages, page;
    u64 pages_per_s, words_per_page;
    u64 start_ns, written; /* pages since start_ns */
    u64 total;
} dirty;

static struct {
    u64 percent, period_ns;
} burn;

static u64 random_state = 88172645463325252ull;

static u64 random_word(void) /* xorshift64, Marsaglia 2003 */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

u64 load_dirty_pages(void)
{
    return dirty.total;
}

const char *load_dirty(u64 set_mib, u64 rate_mib_s, bool sparse)
{
    if (!set_mib != !rate_mib_s || set_mib > 1 << 20 || rate_mib_s > 1 << 20)
        return "dirty wants a set and a rate above 0, or 0 and 0";
    dirty.pages_per_s = 0;
    u64 *set = ledger_spare(set_mib * MIB);

    if (!set)
        return "no memory left for such a set";
    dirty.set = set;
    dirty.set_pages = set_mib * MIB / PAGE_BYTES;
    dirty.page = 0;
    dirty.pages_per_s = rate_mib_s * MIB / PAGE_BYTES;
    dirty.words_per_page = (sparse ? SPARSE_BYTES : PAGE_BYTES) / sizeof *set;
    dirty.start_ns = now_ns();
    dirty.written = 0;
    return 0;
}

const char *load_burn(u64 percent)
{
    if (percent > 100)
        return "burn wants 0 to 100 percent";
    burn.percent = percent;
    burn.period_ns = now_ns();
    return 0;
}

static void read_dirty(const char *at, const char *end)
{
    u64 set, rate;
    bool sparse = false;
    bool good = parse_u64(&at, end, &set) && at < end && *at++ == ':' && parse_u64(&at, end, &rate);

    if (good && at < end && *at == ':') {
        at++;
        sparse = end - at == 6 && !memcmp(at, "sparse", 6);
        good = sparse || (end - at == 4 && !memcmp(at, "full", 4));
    } else if (at != end) {
        good = false;
    }
    const char *wrong = good ? load_dirty(set, rate, sparse) : "dirty= wants SET_MIB:RATE_MIB_S[:sparse]";

    if (wrong)
        power_off(wrong, true);
}

void load_init(void)
{
    const char *end, *at = argument("dirty", &end);

    if (at)
        read_dirty(at, end);
    at = argument("burn", &end);
    if (at) {
        u64 percent = 100;

        if (at != end && (!parse_u64(&at, end, &percent) || at != end))
            percent = 101;
        const char *wrong = load_burn(percent);

        if (wrong)
            power_off(wrong, true);
    }
}

static u64 dirty_step(u64 now)
{
    u64 elapsed = now - dirty.start_ns;
    u64 due = elapsed / 1000 * dirty.pages_per_s / (NS_PER_S / 1000);

    if (due > dirty.written + dirty.pages_per_s / (NS_PER_S / CATCH_UP_NS) + 1 || elapsed > 3600 * NS_PER_S) {
        dirty.start_ns = now; /* begin to count anew */
        dirty.written = 0;
        return 0;
    }
    for (int i = 0; i < PAGES_PER_STEP && dirty.written < due; i++) {
        u64 *words = dirty.set + dirty.page * (PAGE_BYTES / sizeof *words);

        for (u64 word = 0; word < dirty.words_per_page; word++)
            words[word] = random_word();
        dirty.page = dirty.page + 1 < dirty.set_pages ? dirty.page + 1 : 0;
        dirty.written++;
        dirty.total++;
    }
    return dirty.written < due ? 0 : now + PERIOD_NS;
}

static u64 burn_step(u64 now)
{
    if (now - burn.period_ns >= PERIOD_NS)
        burn.period_ns = now;
    if (now - burn.period_ns >= burn.percent * (PERIOD_NS / 100))
        return burn.period_ns + PERIOD_NS;
    for (int i = 0; i < BURN_ROUNDS_PER_STEP; i++)
        asm volatile("" ::"r"(random_word()));
    return 0;
}

u64 load_step(u64 now)
{
    u64 burn_ns = NEVER, dirty_ns = NEVER;

    if (burn.percent)
        burn_ns = burn_step(now);
    if (dirty.pages_per_s)
        dirty_ns = dirty_step(now);
    return burn_ns < dirty_ns ? burn_ns : dirty_ns;
}
