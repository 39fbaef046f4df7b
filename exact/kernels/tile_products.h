/* Matrix products by AMX: of tiles of digits with each other, or with tiles of bytes.

   A product of two tiles is 16 × 16 sums in int32. */

#include <sys/syscall.h>
long syscall(long, ...);

/* Whether the system lets this process use tiles, which it has to ask for. */
static int has_tiles(void) {
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    static int asked, granted;
    if (!__atomic_load_n(&asked, __ATOMIC_ACQUIRE)) {
        granted = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
        __atomic_store_n(&asked, 1, __ATOMIC_RELEASE);
    }
    return granted;
}

enum { LONGEST = 512 };  /* tiles in a sum: 3 · 512 · 64 products of 2^14 fit into an int32 */
typedef int32_t Sums[SIDE * SIDE];

/* The sums of each power of 256. Products that follow each other have different sums, as an addition
   takes several times as long as the processor needs to begin the next. */
INLINE void multiply_digits_of_both(const int8_t *a, const int8_t *b, long tiles, Sums *sums) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4);
    for (; tiles; tiles--, a += DIGITS * TILE, b += DIGITS * TILE) {
        _tile_loadd(5, a, LENGTH);
        _tile_loadd(6, b + 2 * TILE, LENGTH);
        _tile_dpbssd(2, 5, 6);
        _tile_loadd(7, b + TILE, LENGTH);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(7, b, LENGTH);
        _tile_dpbssd(0, 5, 7);
        _tile_loadd(5, a + TILE, LENGTH);
        _tile_dpbssd(3, 5, 6);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(7, b + TILE, LENGTH);
        _tile_dpbssd(2, 5, 7);
        _tile_loadd(5, a + 2 * TILE, LENGTH);
        _tile_dpbssd(4, 5, 6);
        _tile_dpbssd(3, 5, 7);
        _tile_loadd(7, b, LENGTH);
        _tile_dpbssd(2, 5, 7);
    }
    _tile_stored(0, sums[0], LENGTH);
    _tile_stored(1, sums[1], LENGTH);
    _tile_stored(2, sums[2], LENGTH);
    _tile_stored(3, sums[3], LENGTH);
    _tile_stored(4, sums[4], LENGTH);
}

/* The sums of each digit of a, with two columns of tiles of bytes. */
INLINE void multiply_digits_and_bytes(
    const int8_t *a, const int8_t *b, const int8_t *c, long tiles, Sums *sums
) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5);
    for (; tiles; tiles--, a += DIGITS * TILE, b += TILE, c += TILE) {
        _tile_loadd(6, a, LENGTH);
        _tile_loadd(7, b, LENGTH);
        _tile_dpbsud(0, 6, 7);
        _tile_loadd(7, c, LENGTH);
        _tile_dpbsud(3, 6, 7);
        _tile_loadd(6, a + TILE, LENGTH);
        _tile_dpbsud(4, 6, 7);
        _tile_loadd(7, b, LENGTH);
        _tile_dpbsud(1, 6, 7);
        _tile_loadd(6, a + 2 * TILE, LENGTH);
        _tile_dpbsud(2, 6, 7);
        _tile_loadd(7, c, LENGTH);
        _tile_dpbsud(5, 6, 7);
    }
    _tile_stored(0, sums[0], LENGTH);
    _tile_stored(1, sums[1], LENGTH);
    _tile_stored(2, sums[2], LENGTH);
    _tile_stored(3, sums[3], LENGTH);
    _tile_stored(4, sums[4], LENGTH);
    _tile_stored(5, sums[5], LENGTH);
}

/* Add the number of which the sums are digits, times the steps of its row and column. */
INLINE void add_sums(
    const Sums *sums, long digits, const double *a_steps, const double *b_steps, double *totals
) {
    typedef int32_t Half __attribute__((vector_size(2 * LANES), aligned(4)));
    for (long e = 0; e < SIDE * SIDE; e += HALF) {
        Doubles sum = {0};
        for (long s = digits - 1; s >= 0; s--) {  /* exact, as the sum of all is */
            Doubles digit = __builtin_convertvector(*(const Half *)(sums[s] + e), Doubles);
            sum = multiply_add(digit, sum, 256.0 - (Doubles){0});
        }
        *(Doubles *)(totals + e) += sum * (a_steps[e / SIDE] * *(const Doubles *)(b_steps + e % SIDE));
    }
}

enum { TILE_GROUP = 4 };  /* rows of tiles for which two columns of tiles stay in the cache */

static void multiply_tiles(void *product, long block) {
    /* Palette 1, and 16 rows of 64 bytes for each of eight tiles. */
    static const struct { uint8_t palette[16]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {
        {1}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    Product *t = product;
    long rows = blocks(t->n, SIDE), columns = blocks(t->m, SIDE), tiles = blocks(t->k, LENGTH);
    long pairs = blocks(columns, 2), first = block / pairs * TILE_GROUP, j = block % pairs * 2;
    long width = min(2, columns - j), column = tiles * (t->b_bits ? DIGITS : 1) * TILE;
    const int8_t *b = (int8_t *)t->b_blocks + j * column, *last = b + (width - 1) * column;
    const double *b_steps = t->steps + (rows + j) * SIDE;
    _tile_loadconfig(&shape);
    for (long r = first; r < min(first + TILE_GROUP, rows); r++) {
        const int8_t *a = (int8_t *)t->a_blocks + r * tiles * DIGITS * TILE;
        const double *a_steps = t->steps + r * SIDE;
        double totals[2][SIDE * SIDE] = {0};
        for (long p = 0; p < tiles; p += LONGEST) {
            Sums sums[2 * DIGITS];
            long n = min(LONGEST, tiles - p), at = p * DIGITS * TILE;
            if (!t->b_bits) multiply_digits_and_bytes(a + at, b + p * TILE, last + p * TILE, n, sums);
            for (long v = 0; v < width; v++)
                if (t->b_bits) {
                    multiply_digits_of_both(a + at, b + v * column + at, n, sums);
                    add_sums(sums, 2 * DIGITS - 1, a_steps, b_steps + v * SIDE, totals[v]);
                } else
                    add_sums(sums + v * DIGITS, DIGITS, a_steps, b_steps + v * SIDE, totals[v]);
        }
        for (long v = 0; v < width; v++)
            store(t, r * SIDE, (j + v) * SIDE, min(SIDE, t->n - r * SIDE),
                  min(SIDE, t->m - (j + v) * SIDE), totals[v], SIDE);
    }
    _tile_release();
}

/* Of floats, or with b_bits 0 of floats and bytes. */
static int tile_product(Product *t, long threads) {
    long rows = blocks(t->n, SIDE), columns = blocks(t->m, SIDE), size = blocks(t->k, LENGTH) * TILE;
    long digits = t->b_bits ? DIGITS : 1;
    long steps = (rows + columns) * SIDE * (long)sizeof(double);
    char *memory = aligned(steps + (rows * DIGITS + columns * digits) * size);
    if (!memory) return 1;
    t->steps = (double *)memory, t->a_blocks = memory + steps;
    t->b_blocks = (int8_t *)t->a_blocks + rows * DIGITS * size;
    int failed = pack_and_multiply(t, threads, blocks(t->n, STRIP) + blocks(t->m, STRIP), pack_tiles,
                                   blocks(rows, TILE_GROUP) * blocks(columns, 2), multiply_tiles);
    free(memory);
    return failed;
}
