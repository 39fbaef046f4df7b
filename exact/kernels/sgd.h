/* Stochastic gradient descent: the steps of torch.optim.SGD, number by number. */
typedef struct {
    float *weights, *momentum;  /* momentum: or NULL */
    const float *grad;
    long n;
} Weights;

typedef struct {
    const Weights *weights;
    long count;
    float lr, momentum, damping, decay;
} Update;

enum { UPDATED = 1 << 14 };

static void update_block(void *update, long block) {
    const Update *t = update;
    const Weights *w = t->weights;
    for (; block >= blocks(w->n, UPDATED); w++) block -= blocks(w->n, UPDATED);
    for (long i = block * UPDATED; i < min((block + 1) * UPDATED, w->n); i++) {
        float g = w->grad[i];
        if (t->decay != 0) g = g + w->weights[i] * t->decay;
        if (w->momentum) {
            float damped = t->damping == 1 ? g : g * t->damping;
            g = w->momentum[i] = w->momentum[i] * t->momentum + damped;
        }
        w->weights[i] = w->weights[i] + g * t->lr;
    }
}

int sgd(const Weights *weights, long count, const float *settings, long threads) {
    Update update = {weights, count, settings[0], settings[1], settings[2], settings[3]};
    long n = 0;
    for (long i = 0; i < count; i++) n += blocks(weights[i].n, UPDATED);
    each(n, useful(threads, 8.0 * n * UPDATED), update_block, &update);
    return 0;
}
