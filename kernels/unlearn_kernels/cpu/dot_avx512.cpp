// fp32, and bf16 on CPUs without an instruction for it: 16 products a step in fp32.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#include "dot_avx512.inl"

namespace unlearn {
namespace {

struct Fp32 {
    using T = float;
    using Vector = __m512;
    static constexpr int LANES = 16;
    static Vector load(const T* p) { return _mm512_loadu_ps(p); }
    static Vector load(const T* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
    static __m512 dot(__m512 sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
    static __m512 as_floats(Vector v) { return v; }
    static Vector from_floats(__m512 v) { return v; }
    static Vector broadcast(const T* p, int lane) { return _mm512_set1_ps(p[lane]); }
    static __m512 widen(const T* p, int64_t n) { return load(p, n); }
    static void store(T* p, __m512 v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
};

struct Widened {
    using T = uint16_t;
    using Vector = __m512;
    static constexpr int LANES = 16;
    static Vector load(const T* p) { return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static Vector load(const T* p, int64_t n) { return widen_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
    static __m512 dot(__m512 sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
    static __m512 as_floats(Vector v) { return v; }
    static Vector from_floats(__m512 v) { return v; }
    static Vector broadcast(const T* p, int lane) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int32_t>(p[lane]) << 16)); }
    static __m512 widen(const T* p, int64_t n) { return load(p, n); }
    // Rounds to nearest, ties to even; a NaN stays one.
    static void store(T* p, __m512 v, int64_t n) {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i high = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF)), 16);
        high = _mm512_mask_mov_epi32(high, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC0));
        _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(high));
    }
};

constexpr DotKernels FP32{"avx512_fp32", down<Fp32>, up<Fp32>};
constexpr DotKernels WIDENED{"avx512_bf16_widened", down<Widened>, up<Widened>};

}  // namespace

const DotKernels& avx512_fp32() { return FP32; }
const DotKernels& avx512_bf16_widened() { return WIDENED; }

}  // namespace unlearn
