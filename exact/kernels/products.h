/* Matrix products of floats, and of floats and bytes: by tiles where the processor has them. */

#if defined(__AMX_INT8__) && defined(__linux__)
#include "tiles.h"
#include "tile_products.h"
#else
static int has_tiles(void) { return 0; }
static int tile_product(Product *t, long threads) { (void)t, (void)threads; return 1; }
#endif

/* Tiles are padded, for which a sum of few products is too short. */
static int by_tiles(const Product *t) { return t->k >= 32 && has_tiles(); }

static long useful_in_product(const Product *t, long threads) {
    double operations = (double)t->n * t->k * t->m;
    return useful(threads, by_tiles(t) ? operations / 8 : operations);  /* as they are faster */
}

int float_product(Product *t, long threads) {
    threads = useful_in_product(t, threads);
    return by_tiles(t) ? tile_product(t, threads) : vector_product(t, threads);
}

/* For bytes, b_bits is 0. */
int byte_product(Product *t, long threads) {
    threads = useful_in_product(t, threads);
    t->b_bits = 0;
    return by_tiles(t) ? tile_product(t, threads) : vector_byte_product(t, threads);
}
