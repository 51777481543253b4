/* The inner loops of pipeline/native.py, which explains the algorithm. Texts are valid UTF-8, with CACHED_BYTES bytes of
   anything after the last. No global state: what changes is in `struct encoder`, which one thread uses at a time. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LETTER = 1, NUMBER = 2, SPACE = 4, NEWLINE = 8, OTHER = 16, CHANGES = 32, SPLITS = 64, FOLLOWS = 128 };
enum { CACHED_BYTES = 16, CACHED_IDS = 3, SHORT_PARTS = 64, CACHE_BITS = 18, RANK_BITS = 22, NUM_WAITING = 64 };
enum { IN_PART = 1 << 21 }; /* with the left character: pairs that a merge may join which takes a part of either */
static const uint64_t MULTIPLIER = 0x9E3779B97F4A7C15u, FREE = UINT64_MAX;
static const uint32_t SEVERAL = UINT32_MAX, NONE = UINT32_MAX;

typedef uint8_t byte;

struct segment { /* 32 bytes: text, and the ids that it becomes */
    uint64_t key[CACHED_BYTES / 8];
    uint32_t ids[CACHED_IDS];
    uint8_t num_bytes, num_ids;
};

struct encoder {
    const byte *classes;         /* of each code point */
    const uint64_t *joins;       /* 2^20 bits: the hashed pairs of characters that some entry of the vocabulary joins */
    const uint64_t *merges;      /* open addressing, no wrapping around: left id << 43 | right id << 22 | rank, or FREE */
    const uint32_t *made_ids;    /* of each rank, the id that the merge makes */
    const uint32_t *byte_ids;    /* 256 */
    uint64_t merge_shift;
    uint32_t *characters;        /* 65,536: id + 1 of the character alone; 0: not seen yet; SEVERAL: more than one id */
    struct segment *cache;       /* 2^CACHE_BITS */
    uint64_t num_steps;          /* work done in merging, for tests */
    uint32_t failed;             /* no memory */
};

static inline uint32_t decode(const byte *p, unsigned *length) {
    uint32_t lead = p[0];
    if (lead >= 0xE0 && lead < 0xF0) return *length = 3, (lead & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63);
    if (lead < 0x80) return *length = 1, lead;
    if (lead < 0xE0) return *length = 2, (lead & 31) << 6 | (p[1] & 63);
    return *length = 4, (lead & 7) << 18 | (p[1] & 63) << 12 | (p[2] & 63) << 6 | (p[3] & 63);
}

static inline int is_joined(const struct encoder *e, uint32_t left, uint32_t right) {
    uint64_t bit = ((uint64_t)left << 32 | right) * MULTIPLIER >> 44;
    return e->joins[bit >> 6] >> (bit & 63) & 1;
}

/* ---- merging ---- */

/* The rank of the merge of two ids, or NONE. */
static inline uint32_t rank_of(const struct encoder *e, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 21 | right;
    const uint64_t *slot = e->merges + (pair * MULTIPLIER >> e->merge_shift);
    while (*slot >> RANK_BITS != pair && *slot != FREE) slot++;
    return *slot == FREE ? NONE : *slot & ((1 << RANK_BITS) - 1);
}

/* Of `n` parts, by looking for the lowest rank again after each merge. */
static size_t merge_short(struct encoder *e, size_t n, uint32_t *ids) {
    uint32_t ranks[SHORT_PARTS];
    for (size_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(e, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t at = 0;
        for (size_t i = 1; i + 1 < n; i++) at = ranks[i] < ranks[at] ? i : at;
        e->num_steps += n;
        if (ranks[at] == NONE) break;
        ids[at] = e->made_ids[ranks[at]];
        n--;
        for (size_t i = at + 1; i < n; i++) ids[i] = ids[i + 1], ranks[i - 1] = ranks[i];
        if (at + 1 < n) ranks[at] = rank_of(e, ids[at], ids[at + 1]);
        if (at) ranks[at - 1] = rank_of(e, ids[at - 1], ids[at]);
    }
    return n;
}

static void push(struct encoder *e, uint64_t *heap, size_t *size, uint64_t value) {
    size_t at = (*size)++;
    for (; at && heap[(at - 1) / 2] > value; at = (at - 1) / 2, e->num_steps++) heap[at] = heap[(at - 1) / 2];
    heap[at] = value;
}

static uint64_t pop(struct encoder *e, uint64_t *heap, size_t *size) {
    uint64_t least = heap[0], value = heap[--*size];
    size_t at = 0, child;
    for (; (child = 2 * at + 1) < *size; at = child, e->num_steps++) {
        if (child + 1 < *size && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= value) break;
        heap[at] = heap[child];
    }
    heap[at] = value;
    return least;
}

/* By a heap of (rank << 32 | place of the left part) and a linked list of the parts: n log n steps. A heap entry that is
   out of date is known by its rank, which the pair at that place no longer has. */
static size_t merge_long(struct encoder *e, const byte *text, size_t n, uint32_t *ids) {
    uint64_t *heap = malloc(n * (2 * sizeof *heap + 2 * sizeof *ids));
    if (!heap) return e->failed = 1, 0;
    uint32_t *next = (uint32_t *)(heap + 2 * n), *before = next + n, rank;
    size_t size = 0, num_ids = 0;
    for (size_t i = 0; i < n; i++) {
        ids[i] = e->byte_ids[text[i]], next[i] = i + 1, before[i] = i - 1;
        if (i && (rank = rank_of(e, ids[i - 1], ids[i])) != NONE) push(e, heap, &size, (uint64_t)rank << 32 | (i - 1));
    }
    while (size) {
        uint64_t least = pop(e, heap, &size);
        uint32_t at = (uint32_t)least, right = next[at];
        if (right >= n) continue; /* the last part, or one that was merged into another */
        if (rank_of(e, ids[at], ids[right]) != least >> 32) continue;
        ids[at] = e->made_ids[least >> 32];
        next[at] = next[right];
        next[right] = UINT32_MAX;
        if (next[at] < n) {
            before[next[at]] = at;
            if ((rank = rank_of(e, ids[at], ids[next[at]])) != NONE) push(e, heap, &size, (uint64_t)rank << 32 | at);
        }
        if (at && (rank = rank_of(e, ids[before[at]], ids[at])) != NONE)
            push(e, heap, &size, (uint64_t)rank << 32 | before[at]);
    }
    for (size_t at = 0; at < n; at = next[at]) ids[num_ids++] = ids[at];
    free(heap);
    return num_ids;
}

static size_t merge_bytes(struct encoder *e, const byte *text, size_t n, uint32_t *ids) {
    if (n > SHORT_PARTS) return merge_long(e, text, n, ids);
    for (size_t i = 0; i < n; i++) ids[i] = e->byte_ids[text[i]];
    return merge_short(e, n, ids);
}

/* The id of a character of up to 16 bits alone, or SEVERAL. */
static inline uint32_t id_of(struct encoder *e, const byte *text, size_t n, uint32_t c) {
    uint32_t ids[4];
    if (!e->characters[c]) e->characters[c] = merge_bytes(e, text, n, ids) == 1 ? ids[0] + 1 : SEVERAL;
    return e->characters[c] == SEVERAL ? SEVERAL : e->characters[c] - 1;
}

/* Starts with whole characters where that gives the same, as the docstring shows, else with bytes. */
static size_t merge_segment(struct encoder *e, const byte *text, size_t n, uint32_t *ids) {
    size_t num_parts = 0;
    uint32_t before = 0, c;
    unsigned length;
    for (const byte *p = text; p < text + n && num_parts < SHORT_PARTS; p += length, before = c) {
        c = decode(p, &length);
        if (length != 3 || !(e->classes[c] & SPLITS) || (num_parts && is_joined(e, before | IN_PART, c))) break;
        if ((ids[num_parts++] = id_of(e, p, length, c)) == SEVERAL) break;
        if (p + length == text + n) return merge_short(e, num_parts, ids);
    }
    return merge_bytes(e, text, n, ids);
}

/* ---- segments ---- */

struct waiting { /* a segment whose ids are not yet looked up */
    const byte *text;
    struct segment *slot; /* in the cache; NULL for a segment that is too long for it */
    uint64_t key[2];
    uint32_t num_bytes, id; /* SEVERAL, or the only id */
};

struct line { /* the segments that wait, so that what they need is in the processor's cache when their turn comes */
    uint32_t *ids; /* where theirs go */
    size_t length;
    struct waiting waiting[NUM_WAITING];
};

static void write_ids(struct encoder *e, struct line *line) {
    uint32_t *ids = line->ids;
    for (struct waiting *w = line->waiting; w < line->waiting + line->length; w++) {
        struct segment *slot = w->slot;
        if (w->id != SEVERAL) {
            *ids++ = w->id;
        } else if (slot && slot->num_bytes == w->num_bytes && slot->key[0] == w->key[0] && slot->key[1] == w->key[1]) {
            memcpy(ids, slot->ids, sizeof slot->ids); /* room is left for that */
            ids += slot->num_ids;
        } else {
            size_t num_ids = merge_segment(e, w->text, w->num_bytes, ids);
            if (slot && num_ids <= CACHED_IDS) {
                memcpy(slot->key, w->key, sizeof slot->key);
                memcpy(slot->ids, ids, num_ids * sizeof *ids);
                slot->num_bytes = w->num_bytes, slot->num_ids = num_ids;
            }
            ids += num_ids;
        }
    }
    line->ids = ids, line->length = 0;
}

static inline void add(struct encoder *e, struct line *line, const byte *text, const byte *end) {
    size_t n = end - text;
    unsigned length;
    if (line->length == NUM_WAITING) write_ids(e, line);
    struct waiting *w = line->waiting + line->length++;
    w->text = text, w->num_bytes = n, w->slot = NULL, w->id = SEVERAL;
    if ((n == 1 || (n == 3 && text[0] >= 0xE0)) && (w->id = id_of(e, text, n, decode(text, &length))) != SEVERAL) return;
    if (n > CACHED_BYTES) return;
    memcpy(w->key, text, sizeof w->key);
    if (n < 8) w->key[0] &= ((uint64_t)1 << 8 * n) - 1, w->key[1] = 0;
    else if (n < 16) w->key[1] &= ((uint64_t)1 << 8 * (n - 8)) - 1;
    uint64_t hash = (w->key[0] ^ (w->key[1] << 23 | w->key[1] >> 41)) * MULTIPLIER;
    w->slot = e->cache + ((hash ^ hash << 29) >> (64 - CACHE_BITS));
    __builtin_prefetch(w->slot);
}

/* ---- words, as the split pattern finds them ---- */

/* Bytes of what `(?i:'s|'t|'re|'ve|'m|'ll|'d)` matches. The letter U+017F is an s, too. */
static size_t contraction(const byte *p, const byte *end) {
    byte first = end - p > 1 ? p[1] | 32 : 0, second = end - p > 2 ? p[2] | 32 : 0;
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    if ((second == 'e' && (first == 'r' || first == 'v')) || (first == 'l' && second == 'l')) return 3;
    return end - p > 2 && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

/* Adds the segments of one document; 0 if it has a character that NFC may change. */
static int encode_document(struct encoder *e, const byte *p, const byte *end, struct line *line, byte allowed) {
    byte seen = 0;
    while (p < end) {
        unsigned length, next_length;
        const byte *start = p;
        uint32_t c = decode(p, &length);
        byte class = e->classes[c], next = 0, is_pure = length == 3; /* so are all characters of the segment */
        seen |= class;
        if (seen & ~allowed) return 0;
        p += length;
        if (c == '\'' && (length = contraction(start, end))) {
            add(e, line, start, p = start + length);
            continue;
        }
        if (!(class & LETTER) && p < end) next = e->classes[decode(p, &next_length)];
        byte run = class & LETTER || (next & LETTER && !(class & (NUMBER | NEWLINE))) ? LETTER
                   : class & OTHER || (next & OTHER && c == ' ')                      ? OTHER
                                                                                      : 0;
        if (run) {
            while (p < end) {
                if (c < 0x80) { /* two such characters are never in two segments of a word */
                    while (p < end && *p < 0x80 && e->classes[*p] & run) c = *p++;
                    if (p == end) break;
                    class = is_pure = 0;
                }
                uint32_t right = decode(p, &length);
                byte right_class = e->classes[right];
                if (!(right_class & run)) break;
                seen |= right_class;
                if (right_class & SPLITS && class & SPLITS && (is_pure || !(right_class & FOLLOWS)) && !is_joined(e, c, right))
                    add(e, line, start, p), start = p, is_pure = 1;
                class = right_class, c = right, p += length, is_pure &= length == 3;
            }
            if (run == OTHER)
                while (p < end && (*p == '\n' || *p == '\r')) p++;
        } else if (class & SPACE) {
            const byte *last = start, *after_newline = class & NEWLINE ? p : NULL;
            while (p < end && (class = e->classes[decode(p, &length)]) & SPACE) {
                last = p, p += length, seen |= class;
                if (class & NEWLINE) after_newline = p;
            }
            if (after_newline) p = after_newline;
            else if (p < end && last > start) p = last;
        }
        add(e, line, start, p);
    }
    return !(seen & ~allowed);
}

/* The ids of all documents one after another, each followed by its closing id; `counts` has the ids of each, that one
   included, or 0 for a document that has a character of a class that isn't allowed. Returns the number of ids, or -1 where
   there was no memory. Needs room for as many ids as there are bytes and documents, and CACHED_IDS more. */
int64_t encode(struct encoder *e, const byte *text, const int64_t *ends, const uint32_t *closing, int64_t num_documents,
               uint32_t *ids, int64_t *counts, byte allowed) {
    struct line line = {.ids = ids};
    const byte *start = text;
    e->failed = 0;
    for (int64_t i = 0; i < num_documents; i++) {
        uint32_t *first = line.ids;
        int is_done = encode_document(e, start, text + ends[i], &line, allowed);
        write_ids(e, &line);
        if (is_done) *line.ids++ = closing[i];
        else line.ids = first;
        counts[i] = line.ids - first;
        start = text + ends[i];
    }
    return e->failed ? -1 : line.ids - ids;
}
