#include "guest.h"

/* Words where both sides allow it: misaligned accesses may be slow, or trap. */
void *memcpy(void *to, const void *from, size_t bytes)
{
    u8 *out = to;
    const u8 *in = from;

    if ((((u64)out ^ (u64)in) & 7) == 0) {
        for (; bytes && ((u64)out & 7); bytes--)
            *out++ = *in++;
        for (; bytes >= 8; bytes -= 8, out += 8, in += 8)
            *(u64 *)out = *(const u64 *)in;
    } else if ((((u64)out ^ (u64)in) & 3) == 0) {
        for (; bytes && ((u64)out & 3); bytes--)
            *out++ = *in++;
        for (; bytes >= 4; bytes -= 4, out += 4, in += 4)
            *(u32 *)out = *(const u32 *)in;
    }
    for (; bytes >= 4; bytes -= 4, out += 4, in += 4) {
        u8 a = in[0], b = in[1], c = in[2], d = in[3];

        out[0] = a;
        out[1] = b;
        out[2] = c;
        out[3] = d;
    }
    while (bytes--)
        *out++ = *in++;
    return to;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    u8 *out = to;
    const u8 *in = from;

    if (out <= in || out >= in + bytes)
        return memcpy(to, from, bytes); /* which copies upwards */
    while (bytes--)
        out[bytes] = in[bytes];
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    u8 *out = to;
    u64 word = (u8)value * 0x0101010101010101ull;

    for (; bytes && ((u64)out & 7); bytes--)
        *out++ = (u8)value;
    for (; bytes >= 8; bytes -= 8, out += 8)
        *(u64 *)out = word;
    while (bytes--)
        *out++ = (u8)value;
    return to;
}

int memcmp(const void *a, const void *b, size_t bytes)
{
    const u8 *left = a, *right = b;

    for (; bytes; bytes--, left++, right++)
        if (*left != *right)
            return *left - *right;
    return 0;
}

size_t strlen(const char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length;
}

bool parse_u64(const char **text, const char *end, u64 *value)
{
    const char *at = *text;
    u64 sum = 0;

    for (; at < end && *at >= '0' && *at <= '9'; at++) {
        if (sum > (~0ull - 9) / 10)
            return false;
        sum = sum * 10 + (u64)(*at - '0');
    }
    if (at == *text)
        return false;
    *text = at;
    *value = sum;
    return true;
}

void text_put_bytes(struct text *text, const void *bytes, size_t count)
{
    size_t room = (size_t)(text->end - text->at);

    if (count > room)
        count = room;
    memcpy(text->at, bytes, count);
    text->at += count;
}

void text_put(struct text *text, const char *string)
{
    text_put_bytes(text, string, strlen(string));
}

void text_put_u64(struct text *text, u64 value)
{
    char digits[20];
    char *at = digits + sizeof digits;

    do {
        *--at = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    text_put_bytes(text, at, (size_t)(digits + sizeof digits - at));
}

void text_put_hex(struct text *text, u64 value)
{
    char digits[16];

    for (int i = 15; i >= 0; i--, value >>= 4)
        digits[i] = "0123456789abcdef"[value & 15];
    text_put_bytes(text, digits, sizeof digits);
}
