// The op under torch's dispatch key CPU.
//
// fp32 and bf16 go to the dot products at every size: a row's sums and roundings then have one order whatever shares its
// batch, so a prompt gets the same answers on an idle server as on a busy one. Handing large groups to matrix products
// would lose that, and win a few per cent of the op's time at d = 2304 and 512 tokens (benchmarks/results/kernel_cpu.json,
// "c++" beside "two linears").

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>

#include "call.h"
#include "dot_call.h"
#include "gemm.h"

namespace unlearn {
namespace {

std::atomic<int64_t> dot_calls{0};

bool has_unit_rows(const at::Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1; }

void copy_rows(const at::Tensor& x, const at::Tensor& y, const Groups& groups) {
    const int64_t bytes = x.size(1) * x.element_size();
    const auto* from = static_cast<const char*>(x.const_data_ptr());
    auto* to = static_cast<char*>(y.mutable_data_ptr());
    for (int64_t t = 0; t < groups.tokens; ++t) {
        if (groups.touches(t)) continue;
        std::memcpy(to + t * y.stride(0) * y.element_size(), from + t * x.stride(0) * x.element_size(), bytes);
    }
}

// Writes y [T, d]; y is x itself or a new tensor. x has unit stride in its last dimension.
void run(const Arguments& a, const at::Tensor& y) {
    static thread_local Groups groups;
    groups.read(a);
    const DotKernels* kernels = has_unit_rows(a.w_down) && has_unit_rows(a.w_up) ? dot_kernels(a.x.scalar_type()) : nullptr;
    if (!y.is_same(a.x)) copy_rows(a.x, y, groups);
    if (kernels && groups.sets <= DOT_SETS) {
        if (dot_groups(a, *kernels, groups, y)) dot_calls.fetch_add(1, std::memory_order_relaxed);
    } else if (groups.sets > 1) {
        gemm_sets(a, groups, y);
    } else {
        for (const auto& group : groups.groups) gemm_group(a, groups, group, y);
    }
}

at::Tensor apply(
    const at::Tensor& x, const at::Tensor& w_down, const at::Tensor& w_up, const at::Tensor& slot_of_token,
    const at::Tensor& rank_of_slot, const at::Tensor& activation_of_slot, const std::optional<at::Tensor>& slot_of_route) {
    const Arguments given{x, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route};
    check(given);
    const at::Tensor rows = has_unit_rows(x) ? x : x.contiguous();
    const at::Tensor y = at::empty(x.sizes(), x.options());
    run({rows, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route}, y);
    return y;
}

void apply_(
    at::Tensor& x, const at::Tensor& w_down, const at::Tensor& w_up, const at::Tensor& slot_of_token,
    const at::Tensor& rank_of_slot, const at::Tensor& activation_of_slot, const std::optional<at::Tensor>& slot_of_route) {
    const Arguments given{x, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route};
    check(given);
    if (has_unit_rows(x)) return run(given, x);
    at::Tensor rows = x.contiguous();
    run({rows, w_down, w_up, slot_of_token, rank_of_slot, activation_of_slot, slot_of_route}, rows);
    x.copy_(rows);
}

// What serves on this CPU, one name a dtype; empty where only matrix products do.
std::string dot_kernels_of_this_cpu() {
    std::string names;
    for (const auto dtype : {at::kBFloat16, at::kFloat}) {
        if (const auto* kernels = dot_kernels(dtype)) names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    return names;
}

TORCH_LIBRARY_FRAGMENT(unlearn_kernels, library) {
    library.def("dot_calls() -> int", [] { return dot_calls.load(); });
    library.def("dot_kernels() -> str", dot_kernels_of_this_cpu);
}

TORCH_LIBRARY_IMPL(unlearn_kernels, CPU, library) {
    library.impl("apply_unlearning", apply);
    library.impl("apply_unlearning_", apply_);
}

}  // namespace
}  // namespace unlearn
