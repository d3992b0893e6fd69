#include "dot_call.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>

namespace unlearn {
namespace {

// Multiply-adds in a call, about 20 us of them, from which a second thread pays for being woken.
constexpr int64_t PARALLEL_FROM_MACS = 1 << 20;

// One unit of work for a thread: this many rows of W_down, or columns of W_up, for one chunk.
constexpr int64_t ROWS_A_TASK = 2 * H_PAD;
constexpr int64_t COLUMNS_A_TASK = 192;

// Set in the environment, it makes a CPU with AVX-512 BF16 act as one without, so that both can be tested on the former.
constexpr const char* WIDEN_BF16 = "UNLEARN_KERNELS_WIDEN_BF16";

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Chunk {
    const Groups::Group* group;
    int64_t begin;  // in token_of_pair
    int32_t count;  // 1 to CHUNK
};

// Row `i` of a tensor whose last dimension has unit stride; `i` counts along the dimension before.
template <class Byte>
struct Rows {
    Byte* data;
    int64_t stride;  // bytes
    Byte* operator[](int64_t i) const { return data + i * stride; }
};

template <class Byte>
Rows<Byte> rows_of(const at::Tensor& t, int64_t dim) {
    auto* data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
    return {data, t.stride(dim) * static_cast<int64_t>(t.element_size())};
}

class Call {
public:
    Call(const Arguments& a, const DotKernels& kernels, const Groups& groups, const at::Tensor& y, char* h)
        : kernels_(kernels),
          groups_(groups),
          d_(a.x.size(1)),
          x_(rows_of<const char>(a.x, 0)),
          y_(rows_of<char>(y, 0)),
          w_down_(rows_of<const char>(a.w_down, 0)),
          w_up_(rows_of<const char>(a.w_up, 0)),
          down_row_stride_(a.w_down.stride(1)),
          up_row_stride_(a.w_up.stride(1)),
          rank_of_slot_(a.rank_of_slot.const_data_ptr<int32_t>()),
          rank_stride_(a.rank_of_slot.stride(0)),
          h_{h, round_up(a.w_down.size(1), H_PAD) * static_cast<int64_t>(a.x.element_size())} {}

    int64_t h_row_bytes() const { return h_.stride; }

    void down(const Chunk& chunk, int64_t begin, int64_t count) const {
        const auto& group = *chunk.group;
        const int64_t rows = round_up(group.rank, H_PAD);
        if (begin >= rows) return;
        Down a{w_down_[group.slot], down_row_stride_, d_, group.rank, group.activation, chunk.count, {}, {}};
        for (int i = 0; i < chunk.count; ++i) {
            a.x[i] = x_[groups_.token_of_pair[chunk.begin + i]];
            a.h[i] = h_[chunk.begin + i];
        }
        kernels_.down(a, begin, std::min(begin + count, rows));
    }

    void up(const Chunk& chunk, int64_t begin, int64_t count) const {
        Term term{w_up_[chunk.group->slot], up_row_stride_, chunk.group->rank, {}};
        Up a{&term, 1, chunk.count, {}, {}};
        for (int i = 0; i < chunk.count; ++i) {
            const int64_t token = groups_.token_of_pair[chunk.begin + i];
            a.x[i] = x_[token];
            a.y[i] = y_[token];
            term.h[i] = h_[chunk.begin + i];
        }
        kernels_.up(a, begin, std::min(begin + count, d_));
    }

    void up_set(int64_t token, int64_t begin, int64_t count) const {
        Term terms[DOT_SETS];
        Up a{terms, 0, 1, {x_[token]}, {y_[token]}};
        for (int64_t pair = token * groups_.sets; pair < (token + 1) * groups_.sets; ++pair) {
            const int64_t slot = groups_.slot_of_pair[pair];
            if (slot < 0) continue;
            const auto rank = rank_of_slot_[slot * rank_stride_];
            terms[a.term_count++] = {w_up_[slot], up_row_stride_, rank, {h_[groups_.place_of_pair[pair]]}};
        }
        if (a.term_count) kernels_.up(a, begin, std::min(begin + count, d_));
    }

private:
    const DotKernels& kernels_;
    const Groups& groups_;
    int64_t d_;
    Rows<const char> x_;
    Rows<char> y_;
    Rows<const char> w_down_, w_up_;  // one "row" a slot
    int64_t down_row_stride_, up_row_stride_;
    const int32_t* rank_of_slot_;
    int64_t rank_stride_;
    Rows<char> h_;  // one row a pair
};

}  // namespace

const DotKernels* dot_kernels(at::ScalarType dtype) {
    static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    static const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && !std::getenv(WIDEN_BF16);
    if (!avx512) return nullptr;
    if (dtype == at::kBFloat16) return bf16 ? &avx512_bf16_native() : &avx512_bf16_widened();
    return dtype == at::kFloat ? &avx512_fp32() : nullptr;
}

bool dot_groups(const Arguments& a, const DotKernels& kernels, const Groups& groups, const at::Tensor& y) {
    // Kept from call to call, so that decoding allocates nothing but its output.
    static thread_local std::vector<Chunk> chunks;
    static thread_local std::vector<char> h;
    const bool sets = groups.sets > 1;
    const int64_t d = a.x.size(1);

    chunks.clear();
    int64_t macs = 0;
    for (const auto& group : groups.groups) {
        for (int64_t begin = group.begin; begin < group.end; begin += CHUNK) {
            chunks.push_back({&group, begin, static_cast<int32_t>(std::min<int64_t>(CHUNK, group.end - begin))});
        }
        macs += (group.end - group.begin) * group.rank * d * 2;
    }
    if (chunks.empty()) return false;
    const size_t bytes = groups.token_of_pair.size() * round_up(a.w_down.size(1), H_PAD) * a.x.element_size();
    if (h.size() < bytes) h.resize(bytes);
    const Call call(a, kernels, groups, y, h.data());
    const auto& all_chunks = chunks;  // the threads of a parallel region have their own `chunks`

    const auto run = [macs](int64_t tasks, const auto& body) {
        at::parallel_for(0, tasks, macs < PARALLEL_FROM_MACS ? tasks : 1, body);
    };
    const int64_t chunk_count = static_cast<int64_t>(chunks.size());
    const int64_t row_tasks = (a.w_down.size(1) + ROWS_A_TASK - 1) / ROWS_A_TASK;
    run(chunk_count * row_tasks, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            call.down(all_chunks[i / row_tasks], i % row_tasks * ROWS_A_TASK, ROWS_A_TASK);
        }
    });
    const int64_t column_tasks = (d + COLUMNS_A_TASK - 1) / COLUMNS_A_TASK;
    run((sets ? groups.tokens : chunk_count) * column_tasks, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t output = i / column_tasks, column = i % column_tasks * COLUMNS_A_TASK;
            sets ? call.up_set(output, column, COLUMNS_A_TASK)
                 : call.up(all_chunks[output], column, COLUMNS_A_TASK);
        }
    });
    return true;
}

}  // namespace unlearn
