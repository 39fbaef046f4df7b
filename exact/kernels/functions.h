/* Sums, norms and functions. */

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

/* e^x of [-800, 800]: e^r, and the exponent of two, which is rounded by the place of the last bit, as
   AVX2 has vectors of this, but none of conversions to int64. */
INLINE double exp_parts(double x, int64_t *k) {
    const double integers = 1.5 * 4503599627370496;  /* 2^52: as large, only integers are numbers */
    double rounded = x * LOG2_E + integers, whole = rounded - integers;
    *k = bits64(rounded) - bits64(integers);
    return polynomial((x - whole * LN2_HIGH) - whole * LN2_LOW, exp_terms, EXP_TERMS);
}

INLINE double exp_normal(double x) {
    int64_t k;
    double part = exp_parts(x, &k);
    return part * power_of_two(k);
}

INLINE double exp_any(double x) {
    int64_t k;
    double part = exp_parts(x < -800 ? -800 : x > 800 ? 800 : x, &k);
    int64_t half = (int64_t)((uint64_t)(k + 2048) >> 1) - 1024;  /* rounded down */
    return part * power_of_two(half) * power_of_two(k - half);
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
