// bf16 by the instruction for it: 32 products a step, accumulated in fp32.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#include "dot_avx512.inl"

namespace unlearn {
namespace {

struct Native {
    using T = uint16_t;
    using Vector = __m512i;
    static constexpr int LANES = 32;
    static Vector load(const T* p) { return _mm512_loadu_si512(p); }
    static Vector load(const T* p, int64_t n) {
        return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
    }
    static __m512 dot(__m512 sum, Vector a, Vector b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
    // Two neighbouring entries are one 32-bit lane.
    static __m512 as_floats(Vector v) { return _mm512_castsi512_ps(v); }
    static Vector from_floats(__m512 v) { return _mm512_castps_si512(v); }
    static Vector broadcast(const T* p, int lane) {
        int32_t pair;
        std::memcpy(&pair, p + 2 * lane, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    static __m512 widen(const T* p, int64_t n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
    static void store(T* p, __m512 v, int64_t n) {
        _mm256_mask_storeu_epi16(p, first(n), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
    }
};

constexpr DotKernels KERNELS{"avx512_bf16", down<Native>, up<Native>};

}  // namespace

const DotKernels& avx512_bf16_native() { return KERNELS; }

}  // namespace unlearn
