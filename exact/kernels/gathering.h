/* Rows of n bytes less 128, and their numbers (byte / 256) unless `out` is NULL. */
typedef struct {
    const int8_t *x;
    const int64_t *index;
    long rows, n;
    int8_t *bytes;
    float *out;
    int failed;
} Gather;

enum { GATHERED = 16, AHEAD = 4 };  /* rows at a time, and those fetched into the cache before */

static void gather_block(void *gather, long block) {
    Gather *t = gather;
    for (long i = block * GATHERED; i < min((block + 1) * GATHERED, t->rows); i++) {
        const int8_t *row = t->x + t->index[i] * t->n;
        if (i + AHEAD < t->rows)
            for (long j = 0; j < t->n; j += 64)
                __builtin_prefetch(t->x + t->index[i + AHEAD] * t->n + j);
        memcpy(t->bytes + i * t->n, row, (size_t)t->n);
        if (!t->out) continue;
        for (long j = 0; j < t->n; j++) t->out[i * t->n + j] = (float)(row[j] + 128) * 0.00390625f;
    }
}

int gather_bytes(
    const int8_t *x, long length, const int64_t *index, long rows, long n, int8_t *bytes, float *out,
    long threads
) {
    for (long i = 0; i < rows; i++)
        if ((uint64_t)index[i] >= (uint64_t)length) return 1;
    Gather gather = {x, index, rows, n, bytes, out, 0};
    each(blocks(rows, GATHERED), useful(threads, 4.0 * rows * n), gather_block, &gather);
    return 0;
}

/* Rows of `size` bytes, of any type. */
int gather_rows(const char *x, long length, const int64_t *index, long rows, long size, char *out) {
    for (long i = 0; i < rows; i++, out += size) {
        if ((uint64_t)index[i] >= (uint64_t)length) return 1;
        memcpy(out, x + index[i] * size, (size_t)size);
    }
    return 0;
}
