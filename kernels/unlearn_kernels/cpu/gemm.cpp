#include "gemm.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/index_copy.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

namespace unlearn {
namespace {

at::Tensor hidden(const Arguments& a, const Groups::Group& group, const at::Tensor& x) {
    at::Tensor h = at::linear(x, a.w_down.select(0, group.slot).narrow(0, 0, group.rank));
    switch (group.activation) {
        case 1: return at::relu_(h);
        case 2: return at::silu_(h);
        case 3: return at::gelu_(h);
        default: return h;
    }
}

at::Tensor w_up_t(const Arguments& a, const Groups::Group& group) {
    return a.w_up.select(0, group.slot).narrow(1, 0, group.rank).t();
}

at::Tensor rows_of(const Groups& groups, const Groups::Group& group) {
    auto* rows = const_cast<int32_t*>(groups.token_of_pair.data()) + group.begin;
    return at::from_blob(rows, {group.end - group.begin}, at::kInt);
}

}  // namespace

void gemm_group(const Arguments& a, const Groups& groups, const Groups::Group& group, const at::Tensor& y) {
    const int64_t count = group.end - group.begin;
    const int64_t first = groups.token_of_pair[group.begin];
    if (groups.token_of_pair[group.end - 1] - first + 1 == count) {  // one run, as a prompt's tokens are: no copies
        const at::Tensor x = a.x.narrow(0, first, count);
        at::Tensor out = y.narrow(0, first, count);
        at::addmm_out(out, x, hidden(a, group, x), w_up_t(a, group));
        return;
    }
    const at::Tensor rows = rows_of(groups, group).to(at::kLong);
    const at::Tensor x = a.x.index_select(0, rows);
    at::Tensor out = y;
    out.index_copy_(0, rows, at::addmm(x, hidden(a, group, x), w_up_t(a, group)));
}

void gemm_sets(const Arguments& a, const Groups& groups, const at::Tensor& y) {
    at::Tensor sum = a.x.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    for (const auto& group : groups.groups) {
        const at::Tensor rows = rows_of(groups, group);
        const at::Tensor h = hidden(a, group, a.x.index_select(0, rows));
        sum.index_add_(0, rows, at::linear(h, w_up_t(a, group).t()).to(at::kFloat));
    }
    // Only rows with a slot: a NaN would not come back from fp32 bit for bit.
    std::vector<int64_t> touched;
    for (int64_t t = 0; t < groups.tokens; ++t) {
        if (groups.touches(t)) touched.push_back(t);
    }
    const at::Tensor rows = at::from_blob(touched.data(), {static_cast<int64_t>(touched.size())}, at::kLong);
    at::Tensor out = y;
    out.index_copy_(0, rows, sum.index_select(0, rows).to(y.scalar_type()));
}

}  // namespace unlearn
