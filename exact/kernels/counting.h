/* What accuracy is made of: the largest number of each row, labels that are equal, their count. */

int argmax(const float *x, long rows, long n, int64_t *out) {
    for (long i = 0; i < rows; i++, x += n) {
        long best = 0;
        for (long j = 0; j < n; j++) {
            if (x[j] != x[j]) return 1;
            best = x[j] > x[best] ? j : best;
        }
        out[i] = best;
    }
    return 0;
}

int equal(const int64_t *a, const int64_t *b, long n, uint8_t *out) {
    for (long i = 0; i < n; i++) out[i] = a[i] == b[i];
    return 0;
}

int count(const uint8_t *x, long n, int64_t *out) {
    *out = 0;
    for (long i = 0; i < n; i++) *out += x[i] != 0;
    return 0;
}
