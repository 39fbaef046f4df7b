/* Kernels of exact operations: the same bits as the implementations in PyTorch, in one pass each.

Sums are exact, as in grid.py and products.py, so their order is free; all other arithmetic is
done one operation after another, without fused multiply-add (-ffp-contract=off). A kernel
returns 0 when it is done, and 1, with nothing promised of its output, where numbers are too large
for it (2^110 and more, infinity, NaN), labels or indices are out of range, or memory is short.
*/

#include "common.h"
#include "integers.h"
#include "float_vectors.h"
#include "byte_vectors.h"
#include "products.h"
#include "convolution.h"
#include "convolution_gradients.h"
#include "pooling.h"
#include "functions.h"
#include "softmax.h"
#include "gathering.h"
#include "counting.h"
#include "sgd.h"
#include "calls.h"
