/* Sums, functions, softmax and the losses of classes. */

/* grid.sum of (outer, n, inner) along the middle; divided by `count` unless that is 0. */
int sum(const float *x, long outer, long n, long inner, long bits, long count, float *out) {
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

/* Heron's method, for numbers from 2^-1000. */
INLINE double square_root(double x) {
    double root = from_bits64((bits64(x) >> 1) + 0x1FF7A3BEA91D9B1B);
    for (int i = 0; i < 4; i++) root = 0.5 * (root + x / root);
    return root;
}

/* The square root of grid.sum of the squares of n numbers. */
int norm(const float *x, long n, long bits, float *out) {
    enum { SUMS = 16 };  /* at the same time */
    int32_t max;
    if (largest(x, 1, n, 0, 1, 1, &max)) return 1;
    float top;
    memcpy(&top, &max, sizeof top);
    double shift = n <= 2 ? 0 : shift_of(power_of_two_below((double)top * top), bits);
    double totals[SUMS] = {0}, total = 0;
    for (long start = 0; start < n; start += SUMS)
        for (long i = 0; i < min(SUMS, n - start); i++)
            totals[i] += ((double)x[start + i] * x[start + i] + shift) - shift;
    for (long i = 0; i < SUMS; i++) total += totals[i];
    *out = total ? (float)square_root(total) : 0;
    return 0;
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
enum { EXP, SIGMOID, TANH, RELU, SIGMOID_BACKWARD, TANH_BACKWARD, RELU_BACKWARD, MAPPED = 4096 };

typedef struct {
    const float *x, *y;
    float *out;
    long n, function, failed;
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
    case RELU: return x <= 0 ? 0 : x;  /* NaN for NaN, and 0 for -0 */
    case SIGMOID_BACKWARD: return x * (y * (1 - y));
    case TANH_BACKWARD: return x * (1 - y * y);
    default: return y <= 0 ? 0 : x;
    }
}

static void map_block(void *map, long block) {
    Map *t = map;
    long start = block * MAPPED, n = min(MAPPED, t->n - start);
    const float *x = t->x + start, *y = t->y + start;
    float *out = t->out + start;
    int32_t max;
    if (t->function <= TANH && largest(x, 1, n, 0, 1, 1, &max))
        fail(&t->failed, 1);
    else
        switch (t->function) {  /* once for each, so that the loop has no other */
        case EXP: for (long i = 0; i < n; i++) out[i] = value_of(EXP, x[i], 0); break;
        case SIGMOID: for (long i = 0; i < n; i++) out[i] = value_of(SIGMOID, x[i], 0); break;
        case TANH: for (long i = 0; i < n; i++) out[i] = value_of(TANH, x[i], 0); break;
        case RELU: for (long i = 0; i < n; i++) out[i] = value_of(RELU, x[i], 0); break;
        case SIGMOID_BACKWARD: for (long i = 0; i < n; i++) out[i] = value_of(SIGMOID_BACKWARD, x[i], y[i]); break;
        case TANH_BACKWARD: for (long i = 0; i < n; i++) out[i] = value_of(TANH_BACKWARD, x[i], y[i]); break;
        default: for (long i = 0; i < n; i++) out[i] = value_of(RELU_BACKWARD, x[i], y[i]);
        }
}

int map(long function, const float *x, const float *y, long n, float *out, long threads) {
    Map map = {x, y, out, n, function, 0};
    each(blocks(n, MAPPED), useful(threads, 32.0 * n), map_block, &map);
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
