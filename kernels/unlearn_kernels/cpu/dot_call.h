// The dot-product kernels over all tokens of a call.
#pragma once

#include "call.h"
#include "dot.h"

namespace unlearn {

constexpr int64_t DOT_SETS = 16;  // slots a token that the dot products take

// The kernels for x's dtype on this CPU, or null.
const DotKernels* dot_kernels(at::ScalarType dtype);

// Writes y for every token with a slot; at most DOT_SETS slots a token. x, y and the weights have unit stride in their
// last dimension. y may be x: every h is known before the first y is written. A row's bits depend on that row and its
// slots alone. Returns whether there was a token with a slot.
bool dot_groups(const Arguments& a, const DotKernels& kernels, const Groups& groups, const at::Tensor& y);

}  // namespace unlearn
