/* Kernels that are called one after the other. */
enum { ARGUMENTS = 9 };
typedef int Kernel(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
typedef struct {
    Kernel *kernel;
    int64_t arguments[ARGUMENTS];  /* addresses and integers */
} Call;

/* From the first call on: the number of the first that declines, else n. */
long run(const Call *calls, long first, long n) {
    for (; first < n; first++) {
        const int64_t *a = calls[first].arguments;
        if (calls[first].kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])) break;
    }
    return first;
}
