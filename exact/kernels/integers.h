/* What all matrix products share: numbers as integers, operands and results. */

/* Numbers of one vector as integers 2048 high + low on a grid of this step. */
typedef struct {
    float shift;
    double step;
} Grid;

INLINE Grid grid_of(int32_t max, long bits) {
    double size = scale_of(max), step = size * power_of_two(1 - bits), least = power_of_two(-149);
    return (Grid){(float)(size * (1.5 * power_of_two(24 - bits))), step > least ? step : least};
}

/* Those of n vectors, by the bits of their largest numbers. */
INLINE void grids_of(const int32_t *max, long n, long bits, float *shifts, double *steps) {
    for (long v = 0; v < n; v++) {
        Grid grid = grid_of(max[v], bits);
        shifts[v] = grid.shift, steps[v] = grid.step;
    }
}

INLINE int32_t integer(float x, float shift) { return bits_of(x + shift) - bits_of(shift); }
INLINE int32_t low_part(int32_t i) { return ((i + 1024) & 2047) - 1024; }
INLINE int32_t high_part(int32_t i) { return (i - low_part(i)) >> 11; }
INLINE int32_t pair(int32_t first, int32_t second) {
    return (first & 0xFFFF) | (int32_t)((uint32_t)second << 16);
}

/* Products: (n, k) by (k, m), strides in elements. Rows of the first operand are blocks of
   scalars, columns of the second blocks of vectors; then each pair of blocks is multiplied. */

typedef struct {
    const float *a;
    const void *b;  /* floats, or bytes less 128 */
    long n, k, m, sa_n, sa_k, sb_k, sb_m, a_bits, b_bits;
    const float *bias;  /* or NULL; bias[i * bias_n + j * bias_m] is added */
    long bias_n, bias_m;
    void *out;
    long so_n, so_m;
    long wide;  /* whether the results are doubles, without bias */
    long batch, sa_b, sb_b, so_b;  /* of floats: as many products, and the distances between them */
    void *a_blocks, *b_blocks;
    double *steps;
    long row, pair, low;  /* distances between digits: of rows, of pairs, of high and low */
    long failed;
} Product;

/* A block of n by m results, rows of which are `width` apart, with the bias added. One of the two
   distances between results is 1. */
INLINE void store(const Product *t, long i0, long j0, long n, long m, const double *block, long width) {
    long start = i0 * t->so_n + j0 * t->so_m;
    float *out = (float *)t->out + start;
    const float *bias = t->bias ? t->bias + i0 * t->bias_n + j0 * t->bias_m : NULL;
    if (t->wide)
        for (long i = 0; i < n; i++)
            for (long j = 0; j < m; j++)
                ((double *)t->out)[start + i * t->so_n + j * t->so_m] = block[i * width + j];
    else if (t->so_m == 1)
        for (long i = 0; i < n; i++)
            for (long j = 0; j < m; j++) {
                float y = (float)block[i * width + j];
                out[i * t->so_n + j] = bias ? y + bias[i * t->bias_n + j * t->bias_m] : y;
            }
    else
        for (long j = 0; j < m; j++)
            for (long i = 0; i < n; i++) {
                float y = (float)block[i * width + j];
                out[i + j * t->so_m] = bias ? y + bias[i * t->bias_n + j * t->bias_m] : y;
            }
}

/* The row i and column j of a block of the result: next to each other are those that share a block
   of the larger operand, as the smaller one rather stays in the cache. */
INLINE void place(long block, long rows, long columns, long *i, long *j) {
    if (rows < columns) *i = block % rows, *j = block / rows;
    else *i = block / columns, *j = block % columns;
}

/* Each product of the batch: pack blocks of the operands, then multiply pairs of them. */
static int pack_and_multiply(
    Product *t, long threads, long packs, void (*pack)(void *, long), long pairs,
    void (*multiply)(void *, long)
) {
    long size = t->wide ? sizeof(double) : sizeof(float);
    t->failed = 0;
    for (long i = 0; i < t->batch && !t->failed; i++) {
        each(packs, threads, pack, t);
        if (!t->failed) each(pairs, threads, multiply, t);
        t->a += t->sa_b, t->b = (const float *)t->b + t->sb_b, t->out = (char *)t->out + t->so_b * size;
    }
    return t->failed != 0;
}
