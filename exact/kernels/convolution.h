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
    long next, failed;
} Convolution;

static double multiplications(const Convolution *t) {
    return (double)t->images * t->height * t->width * t->groups * t->outputs * t->k;
}

static void pack_weights(void *convolution, long block) {
    Convolution *t = convolution;
    long rows = blocks(t->outputs, ROWS), i = block % rows * ROWS;
    const float *from = t->weight + (block / rows * t->outputs + i) * t->k;
    fail(&t->failed, pack(from, min(ROWS, t->outputs - i), t->k, t->k, 1, t->a_bits, ROWS,
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
    if (!inputs) { fail(&t->failed, 1); return; }
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
        fail(&t->failed, gather_inputs(t, from, largest, inputs));
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
    threads = useful(threads, multiplications(t));
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
