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
int average_pool(const Pooling *t, long bits, long count) {
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
int average_pool_backward(const Pooling *t, long count) {
    const float *grad = t->x;
    memset(t->out, 0, (size_t)(t->planes * t->height * t->width) * sizeof *t->out);
    for (long i = 0; i < t->planes * t->out_height; i++) {
        float *rows = t->out + (i / t->out_height * t->height + i % t->out_height * t->stride_y) * t->width;
        for (long j = 0; j < t->out_width; j++) {
            float share = (float)((double)*grad++ / count + 0.0);
            for (long y = 0; y < t->kernel_y; y++)
                for (long k = 0; k < t->kernel_x; k++)
                    rows[y * t->width + j * t->stride_x + k] = share;
        }
    }
    return 0;
}

int max_pool(Pooling *t, long threads) {
    double inputs = (double)t->planes * t->out_height * t->out_width * t->kernel_y * t->kernel_x;
    each(t->planes, useful(threads, 8 * inputs), pool_plane, t);
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
