/* Softmax, and the loss of classes. */

enum { TOGETHER = 1 << 14 };  /* numbers for which there is memory; several rows, as a vector is longer */

/* Of rows with n numbers each, the softmax or its logarithm. Some numbers of a row may be -inf. */
int softmax(const float *x, long rows, long n, long bits, long logarithm, float *out) {
    const int32_t minus_infinity = bits_of(-__builtin_inff());
    if (rows > 1 && rows * n > TOGETHER) {
        long half = rows / 2;
        return softmax(x, half, n, bits, logarithm, out)
            || softmax(x + half * n, rows - half, n, bits, logarithm, out + half * n);
    }
    double *shifted = malloc((size_t)(2 * rows * n) * sizeof *shifted), *terms = shifted + rows * n;
    if (!shifted) return 1;
    int failed = 0;
    for (long i = 0; i < rows * n; i += n) {
        float top = x[i];
        for (long j = i; j < i + n; j++) top = x[j] > top ? x[j] : top;
        failed |= magnitude(top) >= TOO_LARGE;
        for (long j = i; j < i + n; j++) {
            failed |= (magnitude(x[j]) >= TOO_LARGE) & (bits_of(x[j]) != minus_infinity);
            shifted[j] = (double)x[j] - top;
        }
    }
    double shift = n <= 2 ? 0 : shift_of(1, bits);
    if (!failed)
        for (long i = 0; i < rows * n; i++)
            terms[i] = (exp_normal(shifted[i] > -700 ? shifted[i] : -700) + shift) - shift;
    for (long i = 0; i < rows * n && !failed; i += n) {
        double total = 0;
        for (long j = i; j < i + n; j++) total += terms[j];
        double log = log_normal(total);
        for (long j = i; j < i + n; j++) shifted[j] -= log;
    }
    if (!failed)
        for (long i = 0; i < rows * n; i++) out[i] = (float)(logarithm ? shifted[i] : exp_any(shifted[i]));
    free(shifted);
    return failed;
}

int log_softmax_backward(
    const float *grad, const float *output, long rows, long n, long bits, float *out
) {
    if (rows > 1 && rows * n > TOGETHER) {
        long half = rows / 2, first = half * n;
        return log_softmax_backward(grad, output, half, n, bits, out)
            || log_softmax_backward(grad + first, output + first, rows - half, n, bits, out + first);
    }
    double *slopes = malloc((size_t)(rows * n) * sizeof *slopes);
    if (!slopes) return 1;
    int failed = 0;
    for (long i = 0; i < rows * n; i++) slopes[i] = exp_any(output[i]);
    for (long i = 0; i < rows * n; i += n) {
        int32_t max;
        failed |= largest(output + i, 1, n, 0, 1, 1, &max);
        failed |= largest(grad + i, 1, n, 0, 1, 1, &max);
        double total = 0, shift = n <= 2 ? 0 : shift_of(scale_of(max), bits);
        for (long j = i; j < i + n; j++) total += snap(grad[j], shift);
        for (long j = i; j < i + n; j++) out[j] = (float)((double)grad[j] - slopes[j] * total);
    }
    free(slopes);
    return failed;
}

/* Minus the number at the label in each row, 0 where the label is `ignored`. If there is a place for
   it, their mean, and how many labels are not ignored. */
int nll_loss(
    const float *x, const int64_t *labels, long rows, long n, int64_t ignored, long bits, float *losses,
    float *mean, float *counted
) {
    long count = 0;
    for (long i = 0; i < rows; i++) {
        if (labels[i] != ignored && (uint64_t)labels[i] >= (uint64_t)n) return 1;
        losses[i] = labels[i] == ignored ? 0 : -x[i * n + labels[i]];
        count += labels[i] != ignored;
    }
    if (!mean) return 0;
    *counted = (float)count;
    return !count || sum(losses, 1, rows, 1, bits, count, mean);
}

/* Its gradient; of the mean, divided by the number of labels that count. */
int nll_loss_backward(
    const float *grad, long stride, const int64_t *labels, long rows, long n, int64_t ignored,
    const float *counted, float *out
) {
    memset(out, 0, (size_t)(rows * n) * sizeof *out);
    for (long i = 0; i < rows; i++) {
        if (labels[i] != ignored && (uint64_t)labels[i] >= (uint64_t)n) return 1;
        float share = counted ? -grad[i * stride] / *counted : -grad[i * stride];
        if (labels[i] != ignored) out[i * n + labels[i]] = share;
    }
    return 0;
}
