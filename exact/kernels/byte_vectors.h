/* Matrix products of floats and bytes by vector instructions, in int16. */

INLINE int digits_of_row(
    const float *x, long k, long sk, long bits, int16_t *high, int16_t *low, double *step
) {
    int32_t max;
    int failed = largest(x, 1, k, 0, sk, 1, &max);
    Grid grid = grid_of(max, bits);
    *step = grid.step;
    for (long p = 0; p < k; p++) {
        int32_t i = integer(x[p * sk], grid.shift);
        high[p] = (int16_t)high_part(i);
        low[p] = (int16_t)low_part(i);
    }
    if (k & 1) high[k] = low[k] = 0;
    return failed;
}

/* Of n <= COLUMNS columns next to each other, in pairs of rows that are `row` apart. */
enum { COLUMNS = 64 / BYTE_ROWS * BYTE_ROWS };
static int digits_of_columns(
    const float *x, long n, long k, long sk, long bits, int32_t *high, int32_t *low, long row,
    double *steps
) {
    int32_t max[COLUMNS];
    float shift[COLUMNS];
    int failed = largest(x, n, k, 1, sk, COLUMNS, max);
    grids_of(max, n, bits, shift, steps);
    for (long p = 0; p < k; p += 2, high += row, low += row) {
        const float *first = x + p * sk, *second = p + 1 < k ? first + sk : NULL;
        for (long v = 0; v < n; v++) {
            int32_t i = integer(first[v], shift[v]), j = second ? integer(second[v], shift[v]) : 0;
            high[v] = pair(high_part(i), high_part(j));
            low[v] = pair(low_part(i), low_part(j));
        }
    }
    return failed;
}

/* Bytes, given as byte - 128: bytes p and p + 1 of vector v as out[p / 2 * BYTE_WIDTH + v]. */
INLINE void pack_bytes_strided(const int8_t *x, long n, long k, long sn, long sk, int32_t *out) {
    for (long p = 0; p < k; p += 2, out += BYTE_WIDTH)
        for (long v = 0; v < BYTE_WIDTH; v++) {
            const int8_t *byte = x + v * sn + p * sk;
            out[v] = v < n ? pair(*byte + 128, p + 1 < k ? byte[sk] + 128 : 0) : 0;
        }
}

/* LANES bytes plus 128. By way of int16, as GCC has no vectors for the direct way. */
INLINE Ints widened(const int8_t *x) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));
    Bytes bytes;
    memcpy(&bytes, x, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Shorts), Ints) + 128;
}

/* The same for as many vectors as a block has, next to each other. */
INLINE void pack_columns_of_bytes(const int8_t *x, long k, long sk, int32_t *out) {
    for (long p = 0; p < k; p += 2, x += 2 * sk)
        for (long v = 0; v < BYTE_WIDTH; v += LANES, out += LANES)
            *(Ints *)out = widened(x + v) | (p + 1 < k ? widened(x + sk + v) << 16 : (Ints){0});
}

/* The same for vectors that are contiguous: squares of four pairs of four vectors are turned. */
INLINE void pack_rows_of_bytes(const int8_t *x, long n, long k, long sn, int32_t *out) {
    typedef int8_t Bytes __attribute__((vector_size(8)));
    typedef int16_t Shorts __attribute__((vector_size(16)));
    for (long group = 0; group < BYTE_WIDTH; group += 4)
        for (long start = 0; start < k; start += 8) {
            Four pairs[4];
            for (long v = 0; v < 4; v++) {
                Bytes bytes;
                memset(&bytes, -128, sizeof bytes);
                if (group + v < n) memcpy(&bytes, x + (group + v) * sn + start, (size_t)min(8, k - start));
                pairs[v] = (Four)(__builtin_convertvector(bytes, Shorts) + 128);
            }
            transpose(pairs);
            for (long p = 0; p < blocks(min(8, k - start), 2); p++)
                *(Four *)(out + (start / 2 + p) * BYTE_WIDTH + group) = pairs[p];
        }
}

static void pack_bytes(const int8_t *x, long n, long k, long sn, long sk, int32_t *out) {
    if (sn == 1 && n == BYTE_WIDTH) pack_columns_of_bytes(x, k, sk, out);
    else if (sk == 1 && n == BYTE_WIDTH && k % 8 == 0)  /* k / 8 * 8: what the compiler can see */
        pack_rows_of_bytes(x, BYTE_WIDTH, k / 8 * 8, sn, out);
    else if (sk == 1) pack_rows_of_bytes(x, n, k, sn, out);
    else pack_bytes_strided(x, n, k, sn, sk, out);
}

static void pack_byte_block(void *product, long block) {
    Product *t = product;
    long pairs = blocks(t->k, 2), columns = blocks(t->m, BYTE_WIDTH), j = block * BYTE_WIDTH;
    if (block < columns) {
        pack_bytes((const int8_t *)t->b + j * t->sb_m, min(BYTE_WIDTH, t->m - j), t->k, t->sb_m,
                   t->sb_k, (int32_t *)t->b_blocks + j * pairs);
        return;
    }
    long size = t->sa_n == 1 ? COLUMNS : BYTE_ROWS, start = (block - columns) * size;
    int failed = 0;
    int32_t *high = (int32_t *)t->a_blocks + start * pairs, *low = high + t->low;
    const float *a = t->a + start * t->sa_n;
    if (t->sa_n == 1)
        failed = digits_of_columns(a, min(COLUMNS, t->n - start), t->k, t->sa_k, t->a_bits, high,
                                   low, t->pair, t->steps + start);
    else
        for (long i = start; i < min(start + size, t->n); i++, a += t->sa_n, high += t->row, low += t->row)
            failed |= t->sa_k == 1 ? digits_of_row(a, t->k, 1, t->a_bits, (int16_t *)high,
                                                   (int16_t *)low, t->steps + i)
                                   : digits_of_row(a, t->k, t->sa_k, t->a_bits, (int16_t *)high,
                                                   (int16_t *)low, t->steps + i);
    fail(&t->failed, failed);
}

/* Add the product of digits and bytes of n pairs, of which at most 2048 fit into an int32, times the
   rows' steps. */
INLINE void add_byte_products(
    const Product *t, const int32_t *a, const int32_t *b, long n, const double *steps,
    double results[BYTE_ROWS][BYTE_WIDTH]
) {
    Ints highs[BYTE_ROWS][BYTE_VECTORS] = {0}, lows[BYTE_ROWS][BYTE_VECTORS] = {0};
    for (long p = 0; p < n; p++) {
        Ints bytes[BYTE_VECTORS];
        for (long v = 0; v < BYTE_VECTORS; v++) {
            bytes[v] = *(const Ints *)(b + p * BYTE_WIDTH + v * LANES);
            IN_REGISTER(bytes[v]);
        }
        for (long i = 0; i < BYTE_ROWS; i++) {
            const int32_t *digits = a + i * t->row + p * t->pair;
            Ints high = digits[0] - (Ints){0};
            for (long v = 0; v < BYTE_VECTORS; v++) highs[i][v] = dot(highs[i][v], high, bytes[v]);
            Ints low = digits[t->low] - (Ints){0};
            for (long v = 0; v < BYTE_VECTORS; v++) lows[i][v] = dot(lows[i][v], low, bytes[v]);
        }
    }
    for (long i = 0; i < BYTE_ROWS; i++) {
        double step = steps[i] / 256;
        int32_t high[BYTE_WIDTH], low[BYTE_WIDTH];
        for (long v = 0; v < BYTE_VECTORS; v++) {
            *(Ints *)(high + v * LANES) = highs[i][v];
            *(Ints *)(low + v * LANES) = lows[i][v];
        }
        for (long j = 0; j < BYTE_WIDTH; j++) results[i][j] += high[j] * (2048 * step) + low[j] * step;
    }
}

enum { BYTE_DEPTH = 256 };  /* pairs, as DEPTH */

static void multiply_byte_block(void *product, long block) {
    Product *t = product;
    long rows = blocks(t->n, BYTE_ROWS), pairs = blocks(t->k, 2), i, j;
    place(block, blocks(rows, GROUP), blocks(t->m, BYTE_WIDTH), &i, &j);
    i *= GROUP, j *= BYTE_WIDTH;
    const int32_t *b = (int32_t *)t->b_blocks + j * pairs;
    double results[GROUP][BYTE_ROWS][BYTE_WIDTH] = {0};
    for (long p = 0; p < pairs; p += BYTE_DEPTH)
        for (long g = 0; g < min(GROUP, rows - i); g++) {
            long row = (i + g) * BYTE_ROWS, first = t->row == 1 ? row % COLUMNS : 0;  /* in its block */
            const int32_t *a = (int32_t *)t->a_blocks + (row - first) * pairs + first;
            add_byte_products(t, a + p * t->pair, b + p * BYTE_WIDTH, min(BYTE_DEPTH, pairs - p),
                              t->steps + row, results[g]);
        }
    for (long g = i; g < min(i + GROUP, rows); g++) {
        long row = g * BYTE_ROWS;
        store(t, row, j, min(BYTE_ROWS, t->n - row), min(BYTE_WIDTH, t->m - j), results[g - i][0],
              BYTE_WIDTH);
    }
}

static int vector_byte_product(Product *t, long threads) {
    long columns = blocks(t->m, BYTE_WIDTH), pairs = blocks(t->k, 2);
    long by_columns = t->sa_n == 1, size = by_columns ? COLUMNS : BYTE_ROWS;
    long rows = blocks(t->n, size) * size;
    long bytes = columns * BYTE_WIDTH * pairs, digits = rows * pairs;  /* bytes are loaded as vectors */
    int32_t *memory = aligned((bytes + 2 * digits) * 4 + rows * (long)sizeof(double));
    if (!memory) return 1;
    t->b_blocks = memory, t->a_blocks = memory + bytes;
    t->steps = (double *)(memory + bytes + 2 * digits);
    t->row = by_columns ? 1 : pairs, t->pair = by_columns ? COLUMNS : 1, t->low = digits;
    int failed = pack_and_multiply(t, threads, columns + rows / size, pack_byte_block,
                                   blocks(blocks(t->n, BYTE_ROWS), GROUP) * columns,
                                   multiply_byte_block);
    free(memory);
    return failed;
}
