/* Vectors, threads, and numbers that are rounded to a grid. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Else GCC reads the vector again at each use, and reading is what takes the time. */
#if defined(__x86_64__)
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define IN_REGISTER(vector)
#endif

/* Vectors: LANES int32 or HALF doubles; how many rows and vectors a block of a product has. */
#if defined(__AVX512BW__)
#include <immintrin.h>
enum { LANES = 16, BYTE_ROWS = 5, BYTE_VECTORS = 2, ROWS = 8, VECTORS = 3 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8, BYTE_ROWS = 3, BYTE_VECTORS = 2, ROWS = 4, VECTORS = 3 };
#else
enum { LANES = 4, BYTE_ROWS = 2, BYTE_VECTORS = 3, ROWS = 4, VECTORS = 2 };
#endif
enum { HALF = LANES / 2, BYTE_WIDTH = LANES * BYTE_VECTORS, WIDTH = HALF * VECTORS };
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8)));

/* Four rows of four numbers become four columns. */
typedef int32_t Four __attribute__((vector_size(16), aligned(4)));
INLINE void transpose(Four x[4]) {
    Four a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
    Four b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
    Four c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
    Four d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
    x[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5), x[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    x[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5), x[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

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

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long blocks(long n, long size) { return (n + size - 1) / size; }

/* Memory that begins with a cache line, so that no vector lies in two; NULL where there is none. */
INLINE void *aligned(long bytes) { return aligned_alloc(64, (size_t)blocks(bytes, 64) * 64); }

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

/* To wake a thread takes about as long as 2^21 multiplications. */
INLINE long useful(long threads, double operations) { return operations < 1 << 21 ? 1 : threads; }

/* Note a failure, which any thread may find. */
INLINE void fail(long *failed, int found) {
    if (found) __atomic_store_n(failed, 1, __ATOMIC_RELAXED);
}

/* Numbers and their bits. */

INLINE int32_t bits_of(float x) { int32_t i; memcpy(&i, &x, 4); return i; }
INLINE int32_t magnitude(float x) { return bits_of(x) & 0x7FFFFFFF; }
INLINE int64_t bits64(double x) { int64_t i; memcpy(&i, &x, 8); return i; }
INLINE double from_bits64(int64_t i) { double x; memcpy(&x, &i, 8); return x; }
INLINE double power_of_two(long k) { return from_bits64((int64_t)(k + 1023) << 52); }

enum { TOO_LARGE = (127 + 110) << 23 };  /* the bits of 2^110 */

/* The size of a number in grid.scale. */
INLINE double power_of_two_below(double x) {
    double size = from_bits64(bits64(x) & 0x7FF0000000000000);
    return size > power_of_two(-1022) ? size : power_of_two(-1022);
}

/* The same of the float whose magnitude has these bits. */
INLINE double scale_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return power_of_two_below(x);
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
