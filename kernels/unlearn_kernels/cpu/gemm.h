// What the dot products do not take: other dtypes, weights without unit stride, very large sets.
// Two matrix products of torch a slot.
#pragma once

#include "call.h"

namespace unlearn {

// Writes y for every token of `group`, whose slot must be the token's only one. y may be x; strides are arbitrary.
void gemm_group(const Arguments& a, const Groups& groups, const Groups::Group& group, const at::Tensor& y);

// Writes y for every token that has a slot; the deltas of a token's slots add up in fp32. y may be x.
void gemm_sets(const Arguments& a, const Groups& groups, const at::Tensor& y);

}  // namespace unlearn
