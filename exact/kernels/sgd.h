/* Stochastic gradient descent: the steps of torch.optim.SGD, number by number. */
typedef struct {
    float *weights, *momentum;  /* momentum: or NULL */
    const float *grad;
    int64_t n;
} Weights;

typedef struct {
    const Weights *weights;
    long count;
    float lr, momentum, damping, decay;
} Update;

enum { UPDATED = 1 << 14 };

/* Of n numbers; momentum and decay are known here, so that the loop has no branches. */
INLINE void update_numbers(
    const Update *t, float *restrict weights, float *restrict momentum, const float *restrict grad,
    long n, int with_momentum, int with_decay
) {
    float lr = t->lr, kept = t->momentum, damping = t->damping, decay = t->decay;
    for (long i = 0; i < n; i++) {
        float g = grad[i];
        if (with_decay) g = g + weights[i] * decay;
        if (with_momentum) g = momentum[i] = momentum[i] * kept + g * damping;
        weights[i] = weights[i] + g * lr;
    }
}

static void update_block(void *update, long block) {
    const Update *t = update;
    const Weights *w = t->weights;
    for (; block >= blocks(w->n, UPDATED); w++) block -= blocks(w->n, UPDATED);
    long start = block * UPDATED, n = min(UPDATED, w->n - start);
    float *weights = w->weights + start, *momentum = w->momentum ? w->momentum + start : NULL;
    const float *grad = w->grad + start;
    if (momentum && t->decay != 0) update_numbers(t, weights, momentum, grad, n, 1, 1);
    else if (momentum) update_numbers(t, weights, momentum, grad, n, 1, 0);
    else if (t->decay != 0) update_numbers(t, weights, NULL, grad, n, 0, 1);
    else update_numbers(t, weights, NULL, grad, n, 0, 0);
}

int sgd(const Weights *weights, long count, const float *settings, long threads) {
    Update update = {weights, count, settings[0], settings[1], settings[2], settings[3]};
    long n = 0;
    for (long i = 0; i < count; i++) n += blocks(weights[i].n, UPDATED);
    each(n, useful(threads, 8.0 * n * UPDATED), update_block, &update);
    return 0;
}
