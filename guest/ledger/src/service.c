#include "service.h"
#include "ledger.h"
#include "load.h"

#define REQUEST_BYTES_MAX 1024
#define ANSWER_BYTES_MAX 1024
#define WORDS_MAX 4
#define ECHO_BYTES_MAX (64 * MIB)

/* One word of a request. */
struct word {
    const char *start, *end;
};

struct request {
    struct word words[WORDS_MAX];
    u32 count;
};

static u64 requests_handled;

static bool is(struct word word, const char *name)
{
    size_t length = strlen(name);

    return (size_t)(word.end - word.start) == length && !memcmp(word.start, name, length);
}

static bool number(struct word word, u64 *value)
{
    return parse_u64(&word.start, word.end, value) && word.start == word.end;
}

static u32 bytes_of(struct word word)
{
    return (u32)(word.end - word.start);
}

/* Every answer's first words: its kind, the ledger's length, its running hash. */
static void put_head(struct text *answer, const char *kind)
{
    text_put(answer, kind);
    text_put(answer, " ");
    text_put_u64(answer, ledger.length);
    text_put(answer, " ");
    text_put_hex(answer, ledger.hash);
}

static void put_error(struct text *answer, const char *why)
{
    put_head(answer, "ERROR");
    text_put(answer, " ");
    text_put(answer, why);
}

static void put(const struct request *request, struct text *answer)
{
    struct word key = request->words[1], value = request->words[2];

    if (request->count != 3)
        put_error(answer, "usage: PUT KEY VALUE");
    else if (bytes_of(key) > KEY_BYTES_MAX)
        put_error(answer, "key too long");
    else if (bytes_of(value) > VALUE_BYTES_MAX)
        put_error(answer, "value too long");
    else if (!ledger_put(key.start, bytes_of(key), value.start, bytes_of(value)))
        put_error(answer, "ledger full");
    else
        put_head(answer, "OK");
}

static void get(const struct request *request, struct text *answer)
{
    struct word key = request->words[1];
    u32 bytes;

    if (request->count != 2) {
        put_error(answer, "usage: GET KEY");
        return;
    }
    const u8 *value = ledger_get(key.start, bytes_of(key), &bytes);

    if (value) {
        put_head(answer, "VALUE");
        text_put(answer, " ");
        text_put_bytes(answer, value, bytes);
    } else {
        put_head(answer, "NONE");
    }
}

static void put_field(struct text *answer, const char *name, u64 value)
{
    text_put(answer, " ");
    text_put(answer, name);
    text_put(answer, "=");
    text_put_u64(answer, value);
}

static void statistics(struct text *answer)
{
    put_head(answer, "STAT");
    put_field(answer, "uptime_ns", now_ns());
    put_field(answer, "slept_ns", slept_ns());
    put_field(answer, "requests", requests_handled);
    put_field(answer, "connections", tcp_statistics.connections);
    put_field(answer, "accepted", tcp_statistics.accepted);
    put_field(answer, "segments_in", tcp_statistics.segments_in);
    put_field(answer, "segments_out", tcp_statistics.segments_out);
    put_field(answer, "retransmissions", tcp_statistics.retransmissions);
    put_field(answer, "dropped", tcp_statistics.dropped);
    put_field(answer, "free_bytes", ledger_free_bytes());
    put_field(answer, "journal", ledger.journaled);
    put_field(answer, "dirty_pages", load_dirty_pages());
}

static void load(const struct request *request, struct text *answer)
{
    const struct word *words = request->words;
    u64 first, second;
    const char *wrong = "usage: DIRTY SET_MIB RATE_MIB_S [sparse], or BURN PERCENT";

    if (is(words[0], "BURN")) {
        if (request->count == 2 && number(words[1], &first))
            wrong = load_burn(first);
    } else if ((request->count == 3 || (request->count == 4 && is(words[3], "sparse"))) &&
               number(words[1], &first) && number(words[2], &second)) {
        wrong = load_dirty(first, second, request->count == 4);
    }
    if (wrong)
        put_error(answer, wrong);
    else
        put_head(answer, "OK");
}

static void echo(struct connection *c, const struct request *request, struct text *answer)
{
    u64 bytes;

    if (request->count != 2 || !number(request->words[1], &bytes) || bytes > ECHO_BYTES_MAX) {
        put_error(answer, "usage: ECHO BYTES, at most 67108864");
        return;
    }
    put_head(answer, "DATA");
    text_put(answer, " ");
    text_put_u64(answer, bytes);
    c->filler_bytes = bytes;
}

/* Sends what room allows of the bytes of an ECHO: letters, and a newline as the last. */
static void send_filler(struct connection *c)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ+/";

    while (c->filler_bytes && tcp_room_bytes(c)) {
        u64 count = sizeof letters - 1;

        if (count > c->filler_bytes)
            count = c->filler_bytes;
        if (count > tcp_room_bytes(c))
            count = tcp_room_bytes(c);
        c->filler_bytes -= count;
        if (c->filler_bytes) {
            tcp_write(c, letters, (u32)count);
        } else {
            tcp_write(c, letters, (u32)count - 1);
            tcp_write(c, "\n", 1);
        }
    }
}

static struct request split(const char *at, const char *end)
{
    struct request request = {.count = 0};

    while (at < end) {
        while (at < end && *at == ' ')
            at++;
        if (at == end)
            break;
        if (request.count == WORDS_MAX) {
            request.count++; /* too many: no request has so many words */
            break;
        }
        struct word *word = &request.words[request.count++];

        word->start = at;
        while (at < end && *at != ' ')
            at++;
        word->end = at;
    }
    return request;
}

static void handle(struct connection *c, const char *line, const char *end)
{
    char buffer[ANSWER_BYTES_MAX];
    struct text answer = {buffer, buffer + sizeof buffer - 1};

    if (end > line && end[-1] == '\r')
        end--;
    struct request request = split(line, end);
    struct word name = request.words[0];

    requests_handled++;
    if (!request.count)
        put_error(&answer, "empty request");
    else if (is(name, "PUT"))
        put(&request, &answer);
    else if (is(name, "GET"))
        get(&request, &answer);
    else if (is(name, "SUM"))
        put_head(&answer, "SUM");
    else if (is(name, "ECHO"))
        echo(c, &request, &answer);
    else if (is(name, "STAT"))
        statistics(&answer);
    else if (is(name, "DIRTY") || is(name, "BURN"))
        load(&request, &answer);
    else if (is(name, "OFF"))
        power_off("a client asked for it", false);
    else if (is(name, "QUIT")) {
        put_head(&answer, "BYE");
        tcp_close(c);
    } else
        put_error(&answer, "unknown request; known are PUT GET SUM ECHO STAT DIRTY BURN QUIT OFF");
    *answer.at++ = '\n';
    tcp_write(c, buffer, (u32)(answer.at - buffer));
}

/* Where the first line in the receive buffer ends, or null. */
static const char *line_end(const struct connection *c)
{
    const char *at = (const char *)c->receive_buffer + c->receive_start;
    const char *end = (const char *)c->receive_buffer + c->receive_end;

    for (; at < end; at++)
        if (*at == '\n')
            return at;
    return 0;
}

bool service_has_request(const struct connection *c)
{
    return line_end(c) != 0;
}

void service_input(struct connection *c)
{
    const char *end;

    for (;;) {
        send_filler(c);
        if (c->closing || c->filler_bytes || tcp_room_bytes(c) < ANSWER_BYTES_MAX)
            return;
        if (!(end = line_end(c)))
            break;
        const char *line = (const char *)c->receive_buffer + c->receive_start;

        handle(c, line, end);
        if (!c->closing)
            tcp_consume(c, (u32)(end + 1 - line));
    }
    if (c->receive_end - c->receive_start >= REQUEST_BYTES_MAX) {
        static const char refusal[] = "ERROR 0 0000000000000000 request too long\n";

        tcp_write(c, refusal, sizeof refusal - 1);
        tcp_close(c);
    }
}
