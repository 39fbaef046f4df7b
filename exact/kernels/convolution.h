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

static double multiplications(const Convolution *t) {
    return (double)t->images * t->height * t->width * t->groups * t->outputs * t->k;
}

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
    threads = useful(threads, multiplications(t));
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
