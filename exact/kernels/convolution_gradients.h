/* Gradients of convolutions' weights and biases. */

/* The grids of the inputs at each tap of a channel, over all outputs. */
static void measure_inputs(Convolution *t, long g, long channel) {
    int32_t *max = calloc((size_t)t->plane, sizeof *max);  /* over all images */
    if (!max) { fail(&t->failed, 1); return; }
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
        fail(&t->failed, found >= TOO_LARGE);
    }
    free(max);
}

/* The grid of the gradient of output i, and the gradient of its bias. */
static void measure_gradients(Convolution *t, long i) {
    long rows = t->groups * t->outputs, places = t->height * t->width;
    int32_t max = 0, found;
    for (long n = 0; n < t->images; n++) {
        fail(&t->failed, largest(t->grad + (n * rows + i) * places, 1, places, 0, 1, 1, &found));
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
    if (!sums) { fail(&t->failed, 1); return; }
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
