/* Kernels of exact operations: the same bits as the implementations in PyTorch, in one pass each.

Sums are exact, as in grid.py and products.py, so their order is free; all other arithmetic is
done one operation after another, without fused multiply-add (-ffp-contract=off). A kernel
returns 0 when it is done, and 1, with nothing promised of its output, where numbers are too large
for it (2^110 and more, infinity, NaN), labels or indices are out of range, or memory is short.
*/

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Vectors: LANES int32 or HALF doubles; how many rows and vectors a block of a product has. */
#if defined(__AVX512BW__)
#include <immintrin.h>
enum { LANES = 16, BYTE_ROWS = 5, BYTE_VECTORS = 2, ROWS = 8, VECTORS = 3 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8, BYTE_ROWS = 2, BYTE_VECTORS = 2, ROWS = 4, VECTORS = 3 };
#else
enum { LANES = 4, BYTE_ROWS = 2, BYTE_VECTORS = 3, ROWS = 4, VECTORS = 2 };
#endif
enum { HALF = LANES / 2, BYTE_WIDTH = LANES * BYTE_VECTORS, WIDTH = HALF * VECTORS };
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8)));

/* acc + the sum of the products of both halves of each int32. */
INLINE Ints dot(Ints acc, Ints a, Ints b) {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return acc + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return acc + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* acc + a * b, fused where that is fast: all three are on the grid. */
INLINE Doubles multiply_add(Doubles acc, Doubles a, Doubles b) {
#if defined(__AVX512BW__)
    return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)acc);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)acc);
#else
    return acc + a * b;
#endif
}

/* Threads: those of PyTorch, by the function GOMP_parallel of its own OpenMP. */

typedef void Parallel(void (*)(void *), void *, unsigned, unsigned);
typedef struct {
    void (*body)(void *, long);
    void *context;
    long n, next;
} Loop;

static Parallel *parallel;

void use_parallel(void *function) { parallel = (Parallel *)function; }

static void work(void *loop_) {
    Loop *loop = loop_;
    long i;
    while ((i = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED)) < loop->n)
        loop->body(loop->context, i);
}

static void each(long n, long threads, void (*body)(void *, long), void *context) {
    Loop loop = {body, context, n, 0};
    if (parallel && threads > 1 && n > 1)
        parallel(work, &loop, (unsigned)(threads < n ? threads : n), 0);
    else
        work(&loop);
}

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long blocks(long n, long size) { return (n + size - 1) / size; }

/* Numbers and their bits. */

INLINE int32_t bits_of(float x) { int32_t i; memcpy(&i, &x, 4); return i; }
INLINE int32_t magnitude(float x) { return bits_of(x) & 0x7FFFFFFF; }
INLINE int64_t bits64(double x) { int64_t i; memcpy(&i, &x, 8); return i; }
INLINE double from_bits64(int64_t i) { double x; memcpy(&x, &i, 8); return x; }
INLINE double power_of_two(long k) { return from_bits64((int64_t)(k + 1023) << 52); }

enum { TOO_LARGE = (127 + 110) << 23 };  /* the bits of 2^110 */

/* grid.scale of the number whose magnitude has these bits. */
INLINE double scale_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    double size = from_bits64(bits64(x) & 0x7FF0000000000000);
    return size > power_of_two(-1022) ? size : power_of_two(-1022);
}

/* grid.snap: (x + shift) - shift. */
INLINE double shift_of(double scale, long bits) { return scale * (1.5 * power_of_two(53 - bits)); }
INLINE double snap(float x, double shift) { return ((double)x + shift) - shift; }

/* The bits of the largest magnitude of each of n <= width vectors of k numbers. */
INLINE int largest(const float *x, long n, long k, long sn, long sk, long width, int32_t *max) {
    int32_t all = 0;
    for (long v = 0; v < width; v++) max[v] = 0;
    if (sk == 1)
        for (long v = 0; v < n; v++) {
            int32_t m = 0;
            for (long p = 0; p < k; p++) m = magnitude(x[v * sn + p]) > m ? magnitude(x[v * sn + p]) : m;
            max[v] = m;
        }
    else
        for (long p = 0; p < k; p++)
            for (long v = 0; v < n; v++)
                max[v] = magnitude(x[v * sn + p * sk]) > max[v] ? magnitude(x[v * sn + p * sk]) : max[v];
    for (long v = 0; v < n; v++) all = max[v] > all ? max[v] : all;
    return all >= TOO_LARGE;
}

/* A block of operands: number p of vector v goes to out[p * width + v], rounded to the grid. */
INLINE int pack_strided(
    const float *x, long n, long k, long sn, long sk, long bits, long width, double *out
) {
    int32_t max[64];
    double shift[64];
    int failed = largest(x, n, k, sn, sk, width, max);
    for (long v = 0; v < width; v++) shift[v] = shift_of(scale_of(max[v]), bits);
    if (n < width) memset(out, 0, (size_t)(k * width) * sizeof *out);
    if (sk == 1)
        for (long start = 0; start < k; start += 16)  /* which stay in the cache */
            for (long v = 0; v < n; v++)
                for (long p = start; p < min(start + 16, k); p++)
                    out[p * width + v] = snap(x[v * sn + p], shift[v]);
    else
        for (long p = 0; p < k; p++)
            for (long v = 0; v < n; v++)
                out[p * width + v] = snap(x[v * sn + p * sk], shift[v]);
    return failed;
}

INLINE int pack(const float *x, long n, long k, long sn, long sk, long bits, long width, double *out) {
    if (sk == 1) return pack_strided(x, n, k, sn, 1, bits, width, out);
    if (sn == 1 && n == width) return pack_strided(x, width, k, 1, sk, bits, width, out);
    return pack_strided(x, n, k, sn, sk, bits, width, out);
}

/* Numbers of one vector as integers 2048 high + low on a grid of this step. */
typedef struct {
    float shift;
    double step;
} Grid;

INLINE Grid grid_of(int32_t max, long bits) {
    double size = scale_of(max), step = size * power_of_two(1 - bits), least = power_of_two(-149);
    return (Grid){(float)(size * (1.5 * power_of_two(24 - bits))), step > least ? step : least};
}

INLINE int32_t integer(float x, float shift) { return bits_of(x + shift) - bits_of(shift); }
INLINE int32_t low_part(int32_t i) { return ((i + 1024) & 2047) - 1024; }
INLINE int32_t high_part(int32_t i) { return (i - low_part(i)) >> 11; }
INLINE int32_t pair(int32_t first, int32_t second) {
    return (first & 0xFFFF) | (int32_t)((uint32_t)second << 16);
}

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
    for (long v = 0; v < n; v++) {
        Grid grid = grid_of(max[v], bits);
        shift[v] = grid.shift, steps[v] = grid.step;
    }
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
    for (long p = 0; p < k; p += 2, out += BYTE_WIDTH) {
        for (long v = 0; v < n; v++) out[v] = x[v * sn + p * sk] + 128;
        for (long v = n; v < BYTE_WIDTH; v++) out[v] = 0;
        if (p + 1 < k)
            for (long v = 0; v < n; v++) out[v] |= (x[v * sn + (p + 1) * sk] + 128) << 16;
    }
}

/* The same for vectors that are contiguous: squares of four pairs of four vectors are turned. */
static void pack_rows_of_bytes(const int8_t *x, long n, long k, long sn, int32_t *out) {
    typedef int32_t Four __attribute__((vector_size(16), aligned(4)));
    for (long group = 0; group < BYTE_WIDTH; group += 4)
        for (long start = 0; start < k; start += 8) {
            long length = min(8, k - start);
            Four x4[4] = {0};
            for (long v = 0; v < min(4, n - group); v++) {
                const int8_t *from = x + (group + v) * sn + start;
                int16_t wide[8] = {0};
                if (length == 8)
                    for (long p = 0; p < 8; p++) wide[p] = from[p] + 128;
                else
                    for (long p = 0; p < length; p++) wide[p] = from[p] + 128;
                memcpy(x4 + v, wide, sizeof wide);
            }
            Four a = __builtin_shufflevector(x4[0], x4[1], 0, 4, 1, 5);
            Four b = __builtin_shufflevector(x4[2], x4[3], 0, 4, 1, 5);
            Four c = __builtin_shufflevector(x4[0], x4[1], 2, 6, 3, 7);
            Four d = __builtin_shufflevector(x4[2], x4[3], 2, 6, 3, 7);
            Four turned[4] = {
                __builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                __builtin_shufflevector(c, d, 0, 1, 4, 5), __builtin_shufflevector(c, d, 2, 3, 6, 7),
            };
            for (long p = 0; p < blocks(length, 2); p++)
                *(Four *)(out + (start / 2 + p) * BYTE_WIDTH + group) = turned[p];
        }
}

static void pack_bytes(const int8_t *x, long n, long k, long sn, long sk, int32_t *out) {
    if (sn == 1 && n == BYTE_WIDTH) pack_bytes_strided(x, BYTE_WIDTH, k, 1, sk, out);
    else if (sk == 1) pack_rows_of_bytes(x, n, k, sn, out);
    else pack_bytes_strided(x, n, k, sn, sk, out);
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
    int failed;
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

static void pack_float_block(void *product, long block) {
    Product *t = product;
    long rows = blocks(t->n, ROWS), i = block * ROWS, j = (block - rows) * WIDTH;
    int failed =
        block < rows
            ? pack(t->a + i * t->sa_n, min(ROWS, t->n - i), t->k, t->sa_n, t->sa_k, t->a_bits, ROWS,
                   (double *)t->a_blocks + i * t->k)
            : pack((const float *)t->b + j * t->sb_m, min(WIDTH, t->m - j), t->k, t->sb_m, t->sb_k,
                   t->b_bits, WIDTH, (double *)t->b_blocks + j * t->k);
    if (failed) __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
}

/* The row i and column j of a block of the result: next to each other are those that share a block
   of the larger operand, as the smaller one rather stays in the cache. */
INLINE void place(long block, long rows, long columns, long *i, long *j) {
    if (rows < columns) *i = block % rows, *j = block / rows;
    else *i = block / columns, *j = block % columns;
}

/* Add the product of a packed block of k columns of ROWS numbers and k rows of WIDTH numbers. */
INLINE void add_products(const double *a, const double *b, long k, double results[ROWS][WIDTH]) {
    Doubles sums[ROWS][VECTORS] = {0};  /* in registers: not `results` itself */
    for (long p = 0; p < k; p++)
        for (long i = 0; i < ROWS; i++) {
            Doubles x = a[p * ROWS + i] - (Doubles){0};
            for (long v = 0; v < VECTORS; v++)
                sums[i][v] = multiply_add(sums[i][v], x, *(const Doubles *)(b + p * WIDTH + v * HALF));
        }
    for (long i = 0; i < ROWS; i++)
        for (long v = 0; v < VECTORS; v++) *(Doubles *)(results[i] + v * HALF) += sums[i][v];
}

enum { GROUP = 4, DEPTH = 192 };  /* blocks of rows that share what is in the cache of b's */

static void multiply_float_block(void *product, long block) {
    Product *t = product;
    long rows = blocks(t->n, ROWS), i, j;
    place(block, blocks(rows, GROUP), blocks(t->m, WIDTH), &i, &j);
    i *= GROUP, j *= WIDTH;
    const double *a = (double *)t->a_blocks + i * ROWS * t->k, *b = (double *)t->b_blocks + j * t->k;
    double results[GROUP][ROWS][WIDTH] = {0};
    for (long p = 0; p < t->k; p += DEPTH)
        for (long g = 0; g < min(GROUP, rows - i); g++)
            add_products(a + (g * t->k + p) * ROWS, b + p * WIDTH, min(DEPTH, t->k - p), results[g]);
    for (long g = i; g < min(i + GROUP, rows); g++)
        store(t, g * ROWS, j, min(ROWS, t->n - g * ROWS), min(WIDTH, t->m - j), results[g - i][0], WIDTH);
}

int float_product(Product *t, long threads) {
    long rows = blocks(t->n, ROWS), columns = blocks(t->m, WIDTH);
    size_t a_size = (size_t)(rows * ROWS * t->k) * sizeof(double);
    char *memory = malloc(a_size + (size_t)(columns * WIDTH * t->k) * sizeof(double));
    if (!memory) return 1;
    t->a_blocks = memory, t->b_blocks = memory + a_size, t->failed = 0;
    long size = t->wide ? sizeof(double) : sizeof(float);
    for (long i = 0; i < t->batch && !t->failed; i++) {
        each(rows + columns, threads, pack_float_block, t);
        if (!t->failed) each(blocks(rows, GROUP) * columns, threads, multiply_float_block, t);
        t->a += t->sa_b, t->b = (const float *)t->b + t->sb_b, t->out = (char *)t->out + t->so_b * size;
    }
    free(memory);
    return t->failed;
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
    if (failed) __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
}

/* The sums of the products of pairs start … end, of which at most 2048 fit into an int32. */
INLINE void multiply_digits(
    const Product *t, const int32_t *a, const int32_t *b, long start, long end,
    int32_t high[BYTE_ROWS][BYTE_WIDTH], int32_t low[BYTE_ROWS][BYTE_WIDTH]
) {
    Ints highs[BYTE_ROWS][BYTE_VECTORS] = {0}, lows[BYTE_ROWS][BYTE_VECTORS] = {0};
    for (long p = start; p < end; p++)
        for (long i = 0; i < BYTE_ROWS; i++) {
            const int32_t *digits = a + i * t->row + p * t->pair;
            Ints x = digits[0] - (Ints){0}, y = digits[t->low] - (Ints){0};
            for (long v = 0; v < BYTE_VECTORS; v++) {
                Ints bytes = *(const Ints *)(b + p * BYTE_WIDTH + v * LANES);
                highs[i][v] = dot(highs[i][v], x, bytes);
                lows[i][v] = dot(lows[i][v], y, bytes);
            }
        }
    for (long i = 0; i < BYTE_ROWS; i++)
        for (long v = 0; v < BYTE_VECTORS; v++) {
            *(Ints *)(high[i] + v * LANES) = highs[i][v];
            *(Ints *)(low[i] + v * LANES) = lows[i][v];
        }
}

static void multiply_byte_block(void *product, long block) {
    Product *t = product;
    enum { PAIRS = 2048 };
    long rows = blocks(t->n, BYTE_ROWS), pairs = blocks(t->k, 2);
    long i0, j0;
    place(block, rows, blocks(t->m, BYTE_WIDTH), &i0, &j0);
    i0 *= BYTE_ROWS, j0 *= BYTE_WIDTH;
    long n = min(BYTE_ROWS, t->n - i0), m = min(BYTE_WIDTH, t->m - j0);
    long first = t->row == 1 ? i0 % COLUMNS : 0;  /* within a block of columns */
    const int32_t *a = (int32_t *)t->a_blocks + (i0 - first) * pairs + first;
    const int32_t *b = (int32_t *)t->b_blocks + j0 * pairs;
    double totals[BYTE_ROWS][BYTE_WIDTH] = {0};
    for (long start = 0; start < pairs; start += PAIRS) {
        int32_t high[BYTE_ROWS][BYTE_WIDTH], low[BYTE_ROWS][BYTE_WIDTH];
        multiply_digits(t, a, b, start, min(start + PAIRS, pairs), high, low);
        for (long i = 0; i < BYTE_ROWS; i++)
            for (long j = 0; j < BYTE_WIDTH; j++)
                totals[i][j] += high[i][j] * 2048.0 + low[i][j];
    }
    for (long i = 0; i < n; i++) {
        double step = t->steps[i0 + i] / 256;
        for (long j = 0; j < BYTE_WIDTH; j++) totals[i][j] *= step;
    }
    store(t, i0, j0, n, m, totals[0], BYTE_WIDTH);
}

/* The same of floats and bytes, for which b_bits is not used. */
int byte_product(Product *t, long threads) {
    long columns = blocks(t->m, BYTE_WIDTH), pairs = blocks(t->k, 2);
    long by_columns = t->sa_n == 1, size = by_columns ? COLUMNS : BYTE_ROWS;
    long rows = blocks(t->n, size) * size;
    size_t digits = (size_t)(rows * pairs), bytes = (size_t)(columns * BYTE_WIDTH * pairs);
    char *memory = malloc((2 * digits + bytes) * sizeof(int32_t) + (size_t)rows * sizeof(double));
    if (!memory) return 1;
    t->steps = (double *)memory, t->a_blocks = t->steps + rows;
    t->b_blocks = (int32_t *)t->a_blocks + 2 * digits;
    t->row = by_columns ? 1 : pairs, t->pair = by_columns ? COLUMNS : 1, t->low = (long)digits;
    t->failed = 0;
    each(columns + rows / size, threads, pack_byte_block, t);
    if (!t->failed) each(blocks(t->n, BYTE_ROWS) * columns, threads, multiply_byte_block, t);
    free(memory);
    return t->failed;
}

/* Convolutions: of padded images (N, G · C, H, W), and weights or their gradient (G · O, K). */

typedef struct {
    const float *x, *weight, *grad;  /* grad: (N, G · O, L), of the outputs */
    const float *bias;  /* or NULL */
    float *out, *bias_grad;
    const int32_t *taps;  /* where in x the K inputs of an output are, from the first one */
    long images, groups, channels, outputs, k;  /* channels, outputs: of a group */
    long height, width;  /* of the outputs: L = height · width */
    long image, group, plane, step_y, step_x;  /* distances in x: of images … channels, outputs */
    long a_bits, b_bits, sum_bits;
    int32_t *largest;
    double *weights, *a_shifts, *b_shifts, **parts;  /* parts: the sums of each thread */
    long next;
    int failed;
} Convolution;

static void fail(Convolution *t, int failed) {
    if (failed) __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
}

static void pack_weights(void *convolution, long block) {
    Convolution *t = convolution;
    long rows = blocks(t->outputs, ROWS), i = block % rows * ROWS;
    const float *from = t->weight + (block / rows * t->outputs + i) * t->k;
    fail(t, pack(from, min(ROWS, t->outputs - i), t->k, t->k, 1, t->a_bits, ROWS,
                 t->weights + block * ROWS * t->k));
}

/* The bits of the largest number at each place of an image, over the channels of a group. */
static void measure_image(void *convolution, long item) {
    Convolution *t = convolution;
    const float *x = t->x + item / t->groups * t->image + item % t->groups * t->group;
    int32_t *max = t->largest + item * t->plane;
    for (long c = 0; c < t->channels; c++, x += t->plane)
        for (long p = 0; p < t->plane; p++) max[p] = magnitude(x[p]) > max[p] ? magnitude(x[p]) : max[p];
}

/* The inputs of WIDTH outputs, which begin at from[v]: out[p * WIDTH + v], rounded to the grid;
   largest[v]: where the largest numbers at these places are. */
INLINE int gather_inputs(const Convolution *t, const int32_t *from, const int32_t *largest, double *out) {
    int32_t max[WIDTH] = {0}, all = 0;
    double shift[WIDTH];
    for (long p = 0; p < t->k / t->channels; p++)
        for (long v = 0; v < WIDTH; v++) {
            int32_t m = t->largest[largest[v] + t->taps[p]];
            max[v] = m > max[v] ? m : max[v];
        }
    for (long v = 0; v < WIDTH; v++) {
        all = max[v] > all ? max[v] : all;
        shift[v] = shift_of(scale_of(max[v]), t->b_bits);
    }
    for (long p = 0; p < t->k; p++) {
        const float *x = t->x + t->taps[p];
        float row[WIDTH];
        for (long v = 0; v < WIDTH; v++) row[v] = x[from[v]];
        for (long v = 0; v < WIDTH; v++) out[p * WIDTH + v] = snap(row[v], shift[v]);
    }
    return all >= TOO_LARGE;
}

static void convolve_blocks(void *convolution, long thread) {
    Convolution *t = convolution;
    (void)thread;
    long places = t->height * t->width, all = t->images * places, columns = blocks(all, WIDTH);
    long rows = blocks(t->outputs, ROWS), block;
    double *inputs = malloc((size_t)(t->k * WIDTH) * sizeof(double));
    if (!inputs) { fail(t, 1); return; }
    while ((block = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED)) < t->groups * columns) {
        long g = block / columns, j = block % columns * WIDTH, m = min(WIDTH, all - j);
        long to[WIDTH], ends[WIDTH];  /* where results go, and which is the first of the next image */
        int32_t from[WIDTH], largest[WIDTH];
        for (long v = 0; v < WIDTH; v++) {
            long place = j + min(v, m - 1), n = place / places;
            place -= n * places;
            long first = place / t->width * t->step_y + place % t->width * t->step_x;
            from[v] = (int32_t)(n * t->image + g * t->group + first);
            largest[v] = (int32_t)((n * t->groups + g) * t->plane + first);
            to[v] = (n * t->groups + g) * t->outputs * places + place;
            ends[v] = min(m, v + places - place);
        }
        fail(t, gather_inputs(t, from, largest, inputs));
        for (long r = 0; r < rows; r++) {
            double results[ROWS][WIDTH] = {0};
            add_products(t->weights + (g * rows + r) * ROWS * t->k, inputs, t->k, results);
            for (long i = 0; i < min(ROWS, t->outputs - r * ROWS); i++) {
                long output = r * ROWS + i;
                double bias = t->bias ? t->bias[g * t->outputs + output] : 0;
                for (long start = 0; start < m; start = ends[start]) {
                    float *out = t->out + to[start] + output * places;
                    for (long v = start; v < ends[start]; v++) out[v - start] = (float)(results[i][v] + bias);
                }
            }
        }
    }
    free(inputs);
}

int convolve(Convolution *t, long threads) {
    long rows = t->groups * blocks(t->outputs, ROWS);
    t->weights = malloc((size_t)(rows * ROWS * t->k) * sizeof(double));
    t->largest = calloc((size_t)(t->images * t->groups * t->plane), sizeof *t->largest);
    t->next = 0, t->failed = !t->weights || !t->largest;
    if (!t->failed) {
        each(rows, threads, pack_weights, t);
        each(t->images * t->groups, threads, measure_image, t);
    }
    if (!t->failed) each(threads, threads, convolve_blocks, t);
    free(t->weights);
    free(t->largest);
    return t->failed;
}

/* The grids of the inputs at each tap of a channel, over all outputs. */
static void measure_inputs(Convolution *t, long g, long channel) {
    int32_t *max = calloc((size_t)t->plane, sizeof *max);  /* over all images */
    if (!max) { fail(t, 1); return; }
    for (long n = 0; n < t->images; n++) {
        const float *x = t->x + n * t->image + g * t->group + channel * t->plane;
        for (long p = 0; p < t->plane; p++) max[p] = magnitude(x[p]) > max[p] ? magnitude(x[p]) : max[p];
    }
    long taps = t->k / t->channels;
    for (long k = channel * taps; k < (channel + 1) * taps; k++) {
        const int32_t *first = max + t->taps[k] - channel * t->plane;
        int32_t found = 0;
        for (long y = 0; y < t->height; y++)
            for (long x = 0; x < t->width; x++) {
                int32_t m = first[y * t->step_y + x * t->step_x];
                found = m > found ? m : found;
            }
        t->b_shifts[g * t->k + k] = shift_of(scale_of(found), t->b_bits);
        fail(t, found >= TOO_LARGE);
    }
    free(max);
}

/* The grid of the gradient of output i, and the gradient of its bias. */
static void measure_gradients(Convolution *t, long i) {
    long rows = t->groups * t->outputs, places = t->height * t->width;
    int32_t max = 0, found;
    for (long n = 0; n < t->images; n++) {
        fail(t, largest(t->grad + (n * rows + i) * places, 1, places, 0, 1, 1, &found));
        max = found > max ? found : max;
    }
    t->a_shifts[i] = shift_of(scale_of(max), t->a_bits);
    double total = 0, shift = t->images * places <= 2 ? 0 : shift_of(scale_of(max), t->sum_bits);
    for (long n = 0; n < t->images; n++)
        for (long p = 0; p < places; p++)
            total += snap(t->grad[(n * rows + i) * places + p], shift);
    t->bias_grad[i] = (float)total;
}

static void measure(void *convolution, long i) {
    Convolution *t = convolution;
    long rows = t->groups * t->outputs, channel = i - rows;
    if (i < rows) measure_gradients(t, i);
    else measure_inputs(t, channel / t->channels, channel % t->channels);
}

enum { PLACES = 128 };  /* whose products are added at a time */

static void accumulate(void *convolution, long thread) {
    Convolution *t = convolution;
    long places = t->height * t->width, all = t->images * places, chunks = blocks(all, PLACES);
    long rows = blocks(t->outputs, ROWS), columns = blocks(t->k, WIDTH), item;
    size_t own = (size_t)(rows * columns) * ROWS * WIDTH;
    size_t packed = (size_t)(rows * ROWS + WIDTH) * PLACES;
    double *sums = calloc((size_t)t->groups * own + packed, sizeof(double));
    t->parts[thread] = sums;
    if (!sums) { fail(t, 1); return; }
    double *a = sums + (size_t)t->groups * own, *b = a + rows * ROWS * PLACES;
    while ((item = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED)) < t->groups * chunks) {
        long g = item / chunks, first = item % chunks * PLACES, n = min(PLACES, all - first);
        const float *x[PLACES], *grad[PLACES];
        for (long p = 0; p < n; p++) {
            long image = (first + p) / places, place = (first + p) % places;
            x[p] = t->x + image * t->image + g * t->group + place / t->width * t->step_y
                   + place % t->width * t->step_x;
            grad[p] = t->grad + (image * t->groups + g) * t->outputs * places + place;
        }
        for (long r = 0; r < rows; r++) {
            int32_t at[ROWS];
            double shifts[ROWS];
            for (long i = 0; i < ROWS; i++) {
                long output = min(r * ROWS + i, t->outputs - 1);
                at[i] = (int32_t)(output * places), shifts[i] = t->a_shifts[g * t->outputs + output];
            }
            for (long p = 0; p < n; p++) {
                float row[ROWS];
                for (long i = 0; i < ROWS; i++) row[i] = grad[p][at[i]];
                for (long i = 0; i < ROWS; i++)
                    a[(r * PLACES + p) * ROWS + i] = snap(row[i], shifts[i]);
            }
        }
        for (long c = 0; c < columns; c++) {
            int32_t taps[WIDTH];
            double shifts[WIDTH];
            for (long v = 0; v < WIDTH; v++) {
                long k = min(c * WIDTH + v, t->k - 1);
                taps[v] = t->taps[k], shifts[v] = t->b_shifts[g * t->k + k];
            }
            for (long p = 0; p < n; p++) {
                float row[WIDTH];
                for (long v = 0; v < WIDTH; v++) row[v] = x[p][taps[v]];
                for (long v = 0; v < WIDTH; v++) b[p * WIDTH + v] = snap(row[v], shifts[v]);
            }
            for (long r = 0; r < rows; r++)
                add_products(a + r * PLACES * ROWS, b, n,
                             (double (*)[WIDTH])(sums + (size_t)g * own + (r * columns + c) * ROWS * WIDTH));
        }
    }
}

/* The gradient of the weights, and of the bias. */
int convolve_gradients(Convolution *t, long threads) {
    long rows = t->groups * t->outputs, columns = blocks(t->k, WIDTH);
    size_t shifts = (size_t)(rows + t->groups * t->k);
    char *memory = calloc(shifts + (size_t)threads, sizeof(double));
    if (!memory) return 1;
    t->a_shifts = (double *)memory, t->b_shifts = t->a_shifts + rows;
    t->parts = (double **)(memory + shifts * sizeof(double));
    t->next = t->failed = 0;
    each(rows + t->groups * t->channels, threads, measure, t);
    if (!t->failed) each(threads, threads, accumulate, t);
    if (!t->failed)
        for (long i = 0; i < rows; i++)
            for (long k = 0; k < t->k; k++) {
                long g = i / t->outputs, o = i % t->outputs;
                long block = (g * blocks(t->outputs, ROWS) + o / ROWS) * columns + k / WIDTH;
                double total = 0;
                for (long part = 0; part < threads; part++)
                    total += t->parts[part][(block * ROWS + o % ROWS) * WIDTH + k % WIDTH];
                t->out[i * t->k + k] = (float)total;
            }
    for (long part = 0; part < threads; part++) free(t->parts[part]);
    free(memory);
    return t->failed;
}

/* Max pooling of planes, (height, width) each, as PyTorch's: the first of equal numbers, or NaN. */
typedef struct {
    const float *x;
    float *out;
    int64_t *index;
    long planes, height, width, out_height, out_width;
    long kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
} Pooling;

/* Row y, whose number i * stride + dx is an input of output i, for first <= i < last. */
INLINE void pool_row(
    const float *row, long y, long dx, long first, long last, long stride, float *out, int64_t *index
) {
    for (long i = first; i < last; i++) {
        float value = row[i * stride + dx];
        int larger = (value > out[i]) | (value != value);
        out[i] = larger ? value : out[i];
        index[i] = larger ? y + i * stride + dx : index[i];
    }
}

static void pool_plane(void *pooling, long plane) {
    const Pooling *t = pooling;
    const float *x = t->x + plane * t->height * t->width;
    float *out = t->out + plane * t->out_height * t->out_width;
    int64_t *index = t->index + plane * t->out_height * t->out_width;
    for (long i = 0; i < t->out_height; i++, out += t->out_width, index += t->out_width) {
        long top = i * t->stride_y - t->padding_y, y = top;
        while (y < 0) y += t->dilation_y;
        for (long j = 0; j < t->out_width; j++) {
            long left = j * t->stride_x - t->padding_x;
            while (left < 0) left += t->dilation_x;
            out[j] = -__builtin_inff(), index[j] = y * t->width + left;
        }
        for (y = top; y < min(t->height, top + t->kernel_y * t->dilation_y); y += t->dilation_y) {
            if (y < 0) continue;
            const float *row = x + y * t->width;
            for (long k = 0; k < t->kernel_x; k++) {
                long dx = k * t->dilation_x - t->padding_x;
                long first = dx < 0 ? blocks(-dx, t->stride_x) : 0;
                long last = dx < t->width ? min(t->out_width, blocks(t->width - dx, t->stride_x)) : 0;
                if (t->stride_x == 2) pool_row(row, y * t->width, dx, first, last, 2, out, index);
                else pool_row(row, y * t->width, dx, first, last, t->stride_x, out, index);
            }
        }
    }
}

/* Means of windows without padding, `count` numbers each, as grid.sum and a division. */
int average_pool(const Pooling *t, long bits, double count) {
    long terms = t->kernel_y * t->kernel_x;
    float *out = t->out;
    for (long i = 0; i < t->planes * t->out_height; i++) {
        const float *rows = t->x + (i / t->out_height * t->height + i % t->out_height * t->stride_y) * t->width;
        for (long j = 0; j < t->out_width; j++) {
            const float *x = rows + j * t->stride_x;
            int32_t max = 0;
            for (long y = 0; y < t->kernel_y; y++)
                for (long k = 0; k < t->kernel_x; k++)
                    max = magnitude(x[y * t->width + k]) > max ? magnitude(x[y * t->width + k]) : max;
            if (max >= TOO_LARGE) return 1;
            double total = 0, shift = terms <= 2 ? 0 : shift_of(scale_of(max), bits);
            for (long y = 0; y < t->kernel_y; y++)
                for (long k = 0; k < t->kernel_x; k++) total += snap(x[y * t->width + k], shift);
            *out++ = (float)(total / count);
        }
    }
    return 0;
}

/* Each gradient, divided, at all inputs of its window, for windows that do not overlap. */
int average_pool_backward(const Pooling *t, double count) {
    const float *grad = t->x;
    memset(t->out, 0, (size_t)(t->planes * t->height * t->width) * sizeof *t->out);
    for (long i = 0; i < t->planes * t->out_height; i++) {
        float *rows = t->out + (i / t->out_height * t->height + i % t->out_height * t->stride_y) * t->width;
        for (long j = 0; j < t->out_width; j++) {
            float share = (float)(*grad++ / count + 0.0);
            for (long y = 0; y < t->kernel_y; y++)
                for (long k = 0; k < t->kernel_x; k++)
                    rows[y * t->width + j * t->stride_x + k] = share;
        }
    }
    return 0;
}

int max_pool(Pooling *t, long threads) {
    each(t->planes, threads, pool_plane, t);
    return 0;
}

/* Each gradient at the index of its maximum, for windows that do not overlap. */
int max_pool_backward(const float *grad, const int64_t *index, long planes, long n, long size, float *out) {
    memset(out, 0, (size_t)(planes * size) * sizeof *out);
    for (long plane = 0; plane < planes; plane++, grad += n, index += n, out += size)
        for (long i = 0; i < n; i++) {
            if ((uint64_t)index[i] >= (uint64_t)size) return 1;
            out[index[i]] = grad[i] + 0.0f;
        }
    return 0;
}

/* grid.sum of (outer, n, inner) along the middle; divided by `count` unless that is 0. */
int sum(const float *x, long outer, long n, long inner, long bits, double count, float *out) {
    enum { WIDE = 64 };
    int failed = 0;
    for (long o = 0; o < outer; o++)
        for (long start = 0; start < inner; start += WIDE) {
            long width = min(WIDE, inner - start);
            const float *part = x + o * n * inner + start;
            int32_t max[WIDE];
            double shift[WIDE], total[WIDE] = {0};
            failed |= inner == 1 ? largest(part, 1, n, 0, 1, 1, max)
                                 : largest(part, width, n, 1, inner, width, max);
            for (long v = 0; v < width; v++)
                shift[v] = n <= 2 ? 0 : shift_of(scale_of(max[v]), bits);
            for (long p = 0; p < n; p++)
                for (long v = 0; v < width; v++) total[v] += snap(part[p * inner + v], shift[v]);
            for (long v = 0; v < width; v++)
                out[o * inner + start + v] = (float)(count ? total[v] / count : total[v]);
        }
    return failed;
}

/* functions.py, number by number. */

static const double LOG2_E = 1.4426950408889634, LN2_HIGH = 0.6931471803691238;
static const double LN2_LOW = 1.9082149292705877e-10;
enum { EXP_TERMS = 14, ARTANH_TERMS = 12 };
static double exp_terms[EXP_TERMS], artanh_terms[ARTANH_TERMS];

void use_series(const double *exp_, const double *artanh) {
    memcpy(exp_terms, exp_, sizeof exp_terms);
    memcpy(artanh_terms, artanh, sizeof artanh_terms);
}

INLINE double polynomial(double x, const double *terms, int n) {
    double result = x * terms[n - 1] + terms[n - 2];
    for (int i = n - 3; i >= 0; i--) result = result * x + terms[i];
    return result;
}

/* e^x of [-800, 800]: e^r, and the exponent of two. */
INLINE double exp_parts(double x, long *k) {
    double whole = __builtin_rint(x * LOG2_E);
    *k = (long)whole;
    return polynomial((x - whole * LN2_HIGH) - whole * LN2_LOW, exp_terms, EXP_TERMS);
}

INLINE double exp_normal(double x) {
    long k;
    double part = exp_parts(x, &k);
    return part * power_of_two(k);
}

INLINE double exp_any(double x) {
    long k;
    double part = exp_parts(x < -800 ? -800 : x > 800 ? 800 : x, &k);
    return part * power_of_two(k >> 1) * power_of_two(k - (k >> 1));
}

INLINE double log_normal(double x) {
    int64_t e = (bits64(x) - 0x3FE6A09E667F3BCD) >> 52;
    double m = from_bits64(bits64(x) - (int64_t)((uint64_t)e << 52)), s = (m - 1) / (m + 1);
    double series = polynomial(s * s, artanh_terms, ARTANH_TERMS) * s * 2;
    return (double)e * LN2_HIGH + (series + (double)e * LN2_LOW);
}

/* Of rows with n numbers each, the softmax or its logarithm. Some numbers of a row may be -inf. */
int softmax(const float *x, long rows, long n, long bits, long logarithm, float *out) {
    const int32_t minus_infinity = bits_of(-__builtin_inff());
    int failed = 0;
    double shift = n <= 2 ? 0 : shift_of(1, bits);
    for (long i = 0; i < rows; i++, x += n, out += n) {
        float top = x[0];
        for (long j = 1; j < n; j++) top = x[j] > top ? x[j] : top;
        failed |= magnitude(top) >= TOO_LARGE;
        for (long j = 0; j < n; j++)
            failed |= (magnitude(x[j]) >= TOO_LARGE) & (bits_of(x[j]) != minus_infinity);
        if (failed) return 1;
        double total = 0;
        for (long j = 0; j < n; j++) {
            double shifted = (double)x[j] - top;
            total += (exp_normal(shifted > -700 ? shifted : -700) + shift) - shift;
        }
        double log = log_normal(total);
        for (long j = 0; j < n; j++) {
            double value = ((double)x[j] - top) - log;
            out[j] = (float)(logarithm ? value : exp_any(value));
        }
    }
    return 0;
}

/* Functions of each number, and their gradients by the function's value y. */
enum { EXP, SIGMOID, TANH, SIGMOID_BACKWARD, TANH_BACKWARD, MAPPED = 4096 };

typedef struct {
    const float *x, *y;
    float *out;
    long n, function;
    int failed;
} Map;

INLINE float value_of(long function, float x, float y) {
    static const double tanh_terms[] = {1.0, -1.0 / 3, 2.0 / 15, -17.0 / 315};
    double z = x;
    switch (function) {
    case EXP: return (float)exp_any(z);
    case SIGMOID: return (float)(1 / (exp_any(-z) + 1));
    case TANH: {
        double far = 1 - 2 / (exp_any(2 * z) + 1), near = z * polynomial(z * z, tanh_terms, 4);
        return (float)(__builtin_fabs(z) < 0.015625 ? near : far);
    }
    case SIGMOID_BACKWARD: return x * (y * (1 - y));
    default: return x * (1 - y * y);
    }
}

static void map_block(void *map, long block) {
    Map *t = map;
    long start = block * MAPPED, n = min(MAPPED, t->n - start);
    const float *x = t->x + start, *y = t->y + start;
    float *out = t->out + start;
    int32_t max;
    if (t->function <= TANH && largest(x, 1, n, 0, 1, 1, &max))
        __atomic_store_n(&t->failed, 1, __ATOMIC_RELAXED);
    else
        switch (t->function) {  /* once for each, so that the loop has no other */
        case EXP: for (long i = 0; i < n; i++) out[i] = value_of(EXP, x[i], 0); break;
        case SIGMOID: for (long i = 0; i < n; i++) out[i] = value_of(SIGMOID, x[i], 0); break;
        case TANH: for (long i = 0; i < n; i++) out[i] = value_of(TANH, x[i], 0); break;
        case SIGMOID_BACKWARD: for (long i = 0; i < n; i++) out[i] = value_of(SIGMOID_BACKWARD, x[i], y[i]); break;
        default: for (long i = 0; i < n; i++) out[i] = value_of(TANH_BACKWARD, x[i], y[i]);
        }
}

int map(long function, const float *x, const float *y, long n, float *out, long threads) {
    Map map = {x, y, out, n, function, 0};
    each(blocks(n, MAPPED), threads, map_block, &map);
    return map.failed;
}

int log_softmax_backward(
    const float *grad, const float *output, long rows, long n, long bits, float *out
) {
    int failed = 0;
    for (long i = 0; i < rows; i++, grad += n, output += n, out += n) {
        int32_t max;
        failed |= largest(output, 1, n, 0, 1, 1, &max);
        failed |= largest(grad, 1, n, 0, 1, 1, &max);
        double total = 0, shift = n <= 2 ? 0 : shift_of(scale_of(max), bits);
        for (long j = 0; j < n; j++) total += snap(grad[j], shift);
        for (long j = 0; j < n; j++) out[j] = (float)((double)grad[j] - exp_any(output[j]) * total);
    }
    return failed;
}

/* Minus the number at the label in each row, 0 where the label is `ignored`. */
int nll_loss(const float *x, const int64_t *labels, long rows, long n, int64_t ignored, float *out) {
    for (long i = 0; i < rows; i++) {
        if (labels[i] != ignored && (uint64_t)labels[i] >= (uint64_t)n) return 1;
        out[i] = labels[i] == ignored ? 0 : -x[i * n + labels[i]];
    }
    return 0;
}

int nll_loss_backward(
    const float *grad, long stride, const int64_t *labels, long rows, long n, int64_t ignored, float *out
) {
    memset(out, 0, (size_t)(rows * n) * sizeof *out);
    for (long i = 0; i < rows; i++) {
        if (labels[i] != ignored && (uint64_t)labels[i] >= (uint64_t)n) return 1;
        if (labels[i] != ignored) out[i * n + labels[i]] = -grad[i * stride];
    }
    return 0;
}

/* Rows of n bytes less 128, and their numbers (byte / 256). */
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
    each(blocks(rows, GATHERED), threads, gather_block, &gather);
    return 0;
}

/* Stochastic gradient descent: the steps of torch.optim.SGD, number by number. */
typedef struct {
    float *weights, *momentum;  /* momentum: or NULL */
    const float *grad;
    long n;
} Weights;

typedef struct {
    const Weights *weights;
    long count;
    float lr, momentum, damping, decay;
} Update;

enum { UPDATED = 1 << 14 };

static void update_block(void *update, long block) {
    const Update *t = update;
    const Weights *w = t->weights;
    for (; block >= blocks(w->n, UPDATED); w++) block -= blocks(w->n, UPDATED);
    for (long i = block * UPDATED; i < min((block + 1) * UPDATED, w->n); i++) {
        float g = w->grad[i];
        if (t->decay != 0) g = g + w->weights[i] * t->decay;
        if (w->momentum) {
            float damped = t->damping == 1 ? g : g * t->damping;
            g = w->momentum[i] = w->momentum[i] * t->momentum + damped;
        }
        w->weights[i] = w->weights[i] + g * t->lr;
    }
}

int sgd(const Weights *weights, long count, const float *settings, long threads) {
    Update update = {weights, count, settings[0], settings[1], settings[2], settings[3]};
    long n = 0;
    for (long i = 0; i < count; i++) n += blocks(weights[i].n, UPDATED);
    each(n, threads, update_block, &update);
    return 0;
}
