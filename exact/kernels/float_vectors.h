/* Matrix products of floats by vector instructions, in float64. */

static void pack_float_block(void *product, long block) {
    Product *t = product;
    long rows = blocks(t->n, ROWS), i = block * ROWS, j = (block - rows) * WIDTH;
    int failed =
        block < rows
            ? pack(t->a + i * t->sa_n, min(ROWS, t->n - i), t->k, t->sa_n, t->sa_k, t->a_bits, ROWS,
                   (double *)t->a_blocks + i * t->k)
            : pack((const float *)t->b + j * t->sb_m, min(WIDTH, t->m - j), t->k, t->sb_m, t->sb_k,
                   t->b_bits, WIDTH, (double *)t->b_blocks + j * t->k);
    fail(&t->failed, failed);
}

/* Add the product of a packed block of k columns of ROWS numbers and k rows of WIDTH numbers. */
INLINE void add_products(const double *a, const double *b, long k, double results[ROWS][WIDTH]) {
    Doubles sums[ROWS][VECTORS] = {0};  /* in registers: not `results` itself */
    for (long p = 0; p < k; p++) {
        Doubles row[VECTORS];
        for (long v = 0; v < VECTORS; v++) {
            row[v] = *(const Doubles *)(b + p * WIDTH + v * HALF);
            IN_REGISTER(row[v]);
        }
        for (long i = 0; i < ROWS; i++) {
            Doubles x = a[p * ROWS + i] - (Doubles){0};
            for (long v = 0; v < VECTORS; v++) sums[i][v] = multiply_add(sums[i][v], x, row[v]);
        }
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

static int vector_product(Product *t, long threads) {
    long rows = blocks(t->n, ROWS), columns = blocks(t->m, WIDTH);
    long b_size = columns * WIDTH * t->k;  /* first, as it is loaded as vectors */
    double *memory = aligned((b_size + rows * ROWS * t->k) * (long)sizeof(double));
    if (!memory) return 1;
    t->b_blocks = memory, t->a_blocks = memory + b_size;
    int failed = pack_and_multiply(t, threads, rows + columns, pack_float_block,
                                   blocks(rows, GROUP) * columns, multiply_float_block);
    free(memory);
    return failed;
}
