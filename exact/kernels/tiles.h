/* Operands of matrix products as tiles for AMX: 16 rows of 64 bytes.

   A number is three bytes with signs, i = d[0] + 256 d[1] + 65536 d[2], in three tiles. */

enum { SIDE = 16, LENGTH = 64, TILE = SIDE * LENGTH, DIGITS = 3 };

/* Exchange rows and columns of a tile's groups of four bytes. */
static void transpose_tile(int32_t *tile) {
    for (long i = 0; i < SIDE; i += 4)
        for (long j = 0; j <= i; j += 4) {
            Four lower[4], upper[4];
            for (long r = 0; r < 4; r++) {
                lower[r] = *(Four *)(tile + (i + r) * SIDE + j);
                upper[r] = *(Four *)(tile + (j + r) * SIDE + i);
            }
            transpose(lower), transpose(upper);
            for (long r = 0; r < 4; r++) {
                *(Four *)(tile + (i + r) * SIDE + j) = upper[r];
                *(Four *)(tile + (j + r) * SIDE + i) = lower[r];
            }
        }
}

INLINE uint32_t digits_of(float x, float shift) {
    return ((uint32_t)integer(x, shift) + 0x808080) ^ 0x808080;
}

/* A tile of each digit of n <= SIDE contiguous vectors of k <= LENGTH numbers; rows are vectors. */
static void row_tiles(const float *x, long n, long k, long sn, const float *shift, int8_t *out) {
    if (n < SIDE || k < LENGTH) memset(out, 0, DIGITS * TILE);
    for (long v = 0; v < n; v++)
        for (long p = 0; p < k; p++) {
            uint32_t digits = digits_of(x[v * sn + p], shift[v]);
            for (long d = 0; d < DIGITS; d++) out[d * TILE + v * LENGTH + p] = (int8_t)(digits >> 8 * d);
        }
}

/* The same of other vectors; rows are groups of four numbers of all vectors. */
INLINE void group_tiles(
    const float *x, long n, long k, long sn, long sk, const float *shift, int8_t *out
) {
    if (k < LENGTH) memset(out, 0, DIGITS * TILE);
    for (long p = 0; p < k; p += 4) {
        float numbers[4][SIDE] = {0};
        for (long r = 0; r < min(4, k - p); r++)
            for (long v = 0; v < n; v++) numbers[r][v] = x[v * sn + (p + r) * sk];
        uint32_t *to = (uint32_t *)out + p / 4 * SIDE;
        for (long v = 0; v < SIDE; v++) {
            uint32_t a = digits_of(numbers[0][v], shift[v]), b = digits_of(numbers[1][v], shift[v]);
            uint32_t c = digits_of(numbers[2][v], shift[v]), d = digits_of(numbers[3][v], shift[v]);
            to[v] = (a & 0xFF) | (b & 0xFF) << 8 | (c & 0xFF) << 16 | d << 24;
            to[TILE / 4 + v] = (a >> 8 & 0xFF) | (b & 0xFF00) | (c & 0xFF00) << 8 | (d & 0xFF00) << 16;
            to[TILE / 2 + v] = (a >> 16 & 0xFF) | (b >> 8 & 0xFF00) | (c & 0xFF0000) | (d & 0xFF0000) << 8;
        }
    }
}

enum { STRIP = 8 * SIDE };  /* vectors that are packed together, as they share cache lines */

/* Tiles of n <= STRIP vectors, rounded to the grid: rows are vectors where `rows`, else groups. */
static int pack_digits(
    const float *x, long n, long k, long sn, long sk, long bits, int rows, int8_t *out, double *steps
) {
    int32_t max[STRIP];
    float shift[STRIP];
    long tiles = blocks(k, LENGTH);
    int failed = sn == 1 ? largest(x, n, k, 1, sk, STRIP, max) : largest(x, n, k, sn, sk, STRIP, max);
    grids_of(max, blocks(n, SIDE) * SIDE, bits, shift, steps);
    for (long t = 0; t < tiles; t++, x += LENGTH * sk)
        for (long v = 0; v < n; v += SIDE) {
            int8_t *to = out + (v / SIDE * tiles + t) * DIGITS * TILE;
            const float *from = x + v * sn;
            long count = min(SIDE, n - v), length = min(LENGTH, k - t * LENGTH);
            if (sk == 1) row_tiles(from, count, length, sn, shift + v, to);
            else if (sn == 1 && count == SIDE) group_tiles(from, SIDE, length, 1, sk, shift + v, to);
            else group_tiles(from, count, length, sn, sk, shift + v, to);
            if (rows != (sk == 1))
                for (long d = 0; d < DIGITS; d++) transpose_tile((int32_t *)(to + d * TILE));
        }
    return failed;
}

/* Tiles of n <= SIDE vectors of bytes, given as byte - 128. Rows are groups of four. */
static void pack_unsigned(const int8_t *x, long n, long k, long sn, long sk, int8_t *out) {
    for (long start = 0; start < k; start += LENGTH, x += LENGTH * sk, out += TILE) {
        long length = min(LENGTH, k - start);
        if (n < SIDE || length < LENGTH) memset(out, 0, TILE);
        if (sk == 1) {
            for (long v = 0; v < n; v++)
                for (long p = 0; p < length; p++) out[v * LENGTH + p] = x[v * sn + p] ^ -128;
            transpose_tile((int32_t *)out);
        } else
            for (long p = 0; p < length; p++)
                for (long v = 0; v < n; v++) out[p / 4 * LENGTH + v * 4 + p % 4] = x[v * sn + p * sk] ^ -128;
    }
}

/* A strip of the first or the second operand. */
static void pack_tiles(void *product, long block) {
    Product *t = product;
    long tiles = blocks(t->k, LENGTH) * TILE, all = blocks(t->n, STRIP), i = block * STRIP, j = i - all * STRIP;
    long n = min(STRIP, t->n - i), m = min(STRIP, t->m - j);
    int8_t *a = (int8_t *)t->a_blocks + i / SIDE * DIGITS * tiles, *b = (int8_t *)t->b_blocks;
    long step = blocks(t->n, SIDE) * SIDE + j;  /* of the first of these columns */
    int failed = 0;
    if (block < all)
        failed = pack_digits(t->a + i * t->sa_n, n, t->k, t->sa_n, t->sa_k, t->a_bits, 1, a, t->steps + i);
    else if (t->b_bits)
        failed = pack_digits((const float *)t->b + j * t->sb_m, m, t->k, t->sb_m, t->sb_k, t->b_bits, 0,
                             b + j / SIDE * DIGITS * tiles, t->steps + step);
    else
        for (long v = 0; v < m; v += SIDE) {
            for (long s = v; s < v + SIDE; s++) t->steps[step + s] = 1.0 / 256;
            pack_unsigned((const int8_t *)t->b + (j + v) * t->sb_m, min(SIDE, m - v), t->k, t->sb_m,
                          t->sb_k, b + (j + v) / SIDE * tiles);
        }
    fail(&t->failed, failed);
}
