// The dot-product kernels behind the op, as tables of plain functions: one table per instruction set and dtype.
//
// A call works on a chunk: up to CHUNK tokens of one slot. Sizes: d hidden size, R the buffers' rank, r <= R the slot's.
#pragma once

#include <cstdint>

namespace unlearn {

constexpr int CHUNK = 8;

// h[i, j] = act(sum over k of w_down[j, k] x[i, k]) for rows j in [begin, end), rounded to the kernels' dtype.
// begin and end are multiples of H_PAD; rows from r on are written as 0 and never read.
struct Down {
    const void* w_down;  // [R, d], rows contiguous
    int64_t row_stride;  // elements from row to row
    int64_t d;
    int64_t rank;
    int32_t activation;  // code of unlearn_kernels.ACTIVATIONS
    int32_t tokens;      // 1 to CHUNK
    const void* x[CHUNK];
    void* h[CHUNK];
};

// One slot's part of an output row: sum over j of w_up[c, j] h[j].
struct Term {
    const void* w_up;  // [d, R], rows contiguous
    int64_t row_stride;
    int64_t rank;
    const void* h[CHUNK];
};

// y[i, c] = x[i, c] + the terms of token i in their order, for columns c in [begin, end), which are multiples of 8.
// Accumulates in fp32 and rounds once. y may be x.
struct Up {
    const Term* terms;
    int64_t term_count;
    int32_t tokens;
    const void* x[CHUNK];
    void* y[CHUNK];
};

constexpr int64_t H_PAD = 32;  // h has this multiple of entries; those from r on are 0

struct DotKernels {
    const char* name;
    void (*down)(const Down&, int64_t begin, int64_t end);
    void (*up)(const Up&, int64_t begin, int64_t end);
};

const DotKernels& avx512_bf16_native();  // bf16 pairs, vdpbf16ps: AVX-512 F, BW, VL, DQ, BF16
const DotKernels& avx512_bf16_widened(); // bf16 widened to fp32: AVX-512 F, BW, VL, DQ
const DotKernels& avx512_fp32();

}  // namespace unlearn
