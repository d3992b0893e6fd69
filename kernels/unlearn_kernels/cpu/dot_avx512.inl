// The kernels, over a trait that says how LANES weights are loaded and multiplied. Included by one source file per
// instruction set, so everything lies in an anonymous namespace: merged across them, one set's code would run in another.

#include <immintrin.h>

#include <cstring>
#include <initializer_list>

#include "dot.h"

namespace unlearn {
namespace {

// Adds up 16 accumulators at once: lane q of the result is the sum of a[q]'s lanes. 30 shuffles instead of 16 x 4.
inline __m512 sum_each(const __m512 (&a)[16]) {
    __m512 pairs[8], quads[4];
    for (int i = 0; i < 8; ++i) {
        const __m512 low = a[4 * (i % 4) + i / 4], high = a[4 * (i % 4) + i / 4 + 2];
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(low, high), _mm512_unpackhi_ps(low, high));
    }
    for (int i = 0; i < 4; ++i) {
        quads[i] = _mm512_add_ps(
            _mm512_unpacklo_ps(pairs[i], pairs[i + 4]), _mm512_unpackhi_ps(pairs[i], pairs[i + 4]));
    }
    const __m512 front = _mm512_add_ps(
        _mm512_shuffle_f32x4(quads[0], quads[1], 0x44), _mm512_shuffle_f32x4(quads[0], quads[1], 0xEE));
    const __m512 back = _mm512_add_ps(
        _mm512_shuffle_f32x4(quads[2], quads[3], 0x44), _mm512_shuffle_f32x4(quads[2], quads[3], 0xEE));
    return _mm512_add_ps(_mm512_shuffle_f32x4(front, back, 0x88), _mm512_shuffle_f32x4(front, back, 0xDD));
}

// exp by 2^n times a polynomial in [-ln2/2, ln2/2] (Cephes' coefficients); a few units in the last place.
inline __m512 exponential(__m512 v) {
    v = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), v));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(1.44269504f)), 8);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), v);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(f, f), _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

inline __m512 silu(__m512 h) {
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(h, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), h))));
}

// 0.5 h (1 + erf(h / sqrt 2)); erf by Abramowitz & Stegun 7.1.26, absolute error 1.5e-7.
inline __m512 gelu(__m512 h) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(h), _mm512_set1_ps(0.70710678f));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    for (const float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
    }
    const __m512 tail = _mm512_mul_ps(  // 1 - erf(z)
        _mm512_mul_ps(p, t), exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
    // h >= 0: h (2 - tail) / 2; h < 0: h tail / 2, exact where it matters, next to 0
    const __mmask16 negative = _mm512_cmp_ps_mask(h, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 factor = _mm512_mask_blend_ps(negative, _mm512_sub_ps(_mm512_set1_ps(2.0f), tail), tail);
    return _mm512_mul_ps(_mm512_mul_ps(h, _mm512_set1_ps(0.5f)), factor);
}

inline __m512 activate(__m512 h, int32_t code) {
    switch (code) {
        case 1: return _mm512_max_ps(_mm512_setzero_ps(), h);  // this order passes a NaN on
        case 2: return silu(h);
        case 3: return gelu(h);
        default: return h;
    }
}

// 16 accumulators, whatever the number of tokens: TOKENS x ROWS, summed and activated together.
template <class V, int TOKENS>
void down_tile(const Down& a, int64_t row) {
    using T = typename V::T;
    constexpr int ROWS = 16 / TOKENS;
    const T* w[ROWS];
    const T* x[TOKENS];
    for (int j = 0; j < ROWS; ++j) {
        const int64_t inside = row + j < a.rank ? row + j : a.rank - 1;
        w[j] = static_cast<const T*>(a.w_down) + inside * a.row_stride;
    }
    for (int i = 0; i < TOKENS; ++i) x[i] = static_cast<const T*>(a.x[i < a.tokens ? i : a.tokens - 1]);
    __m512 sums[16];
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + V::LANES <= a.d; k += V::LANES) {
        typename V::Vector xs[TOKENS];
        for (int i = 0; i < TOKENS; ++i) xs[i] = V::load(x[i] + k);
        for (int j = 0; j < ROWS; ++j) {
            const auto ws = V::load(w[j] + k);
            for (int i = 0; i < TOKENS; ++i) sums[i * ROWS + j] = V::dot(sums[i * ROWS + j], ws, xs[i]);
        }
    }
    if (k < a.d) {
        typename V::Vector xs[TOKENS];
        for (int i = 0; i < TOKENS; ++i) xs[i] = V::load(x[i] + k, a.d - k);
        for (int j = 0; j < ROWS; ++j) {
            const auto ws = V::load(w[j] + k, a.d - k);
            for (int i = 0; i < TOKENS; ++i) sums[i * ROWS + j] = V::dot(sums[i * ROWS + j], ws, xs[i]);
        }
    }
    T h[16];
    V::store(h, activate(sum_each(sums), a.activation), 16);
    const int64_t inside = a.rank - row < ROWS ? a.rank - row : ROWS;
    for (int i = 0; i < TOKENS && i < a.tokens; ++i) {
        T* to = static_cast<T*>(a.h[i]) + row;
        std::memcpy(to, h + i * ROWS, ROWS * sizeof(T));
        for (int64_t j = inside; j < ROWS; ++j) to[j] = T{};
    }
}

template <class V, int TOKENS>
void down_rows(const Down& a, int64_t begin, int64_t end) {
    constexpr int ROWS = 16 / TOKENS;
    int64_t row = begin;
    for (; row < end && row < a.rank; row += ROWS) down_tile<V, TOKENS>(a, row);
    for (int i = 0; i < a.tokens && row < end; ++i) {
        std::memset(static_cast<typename V::T*>(a.h[i]) + row, 0, (end - row) * sizeof(typename V::T));
    }
}

template <class V>
void down(const Down& a, int64_t begin, int64_t end) {
    switch (a.tokens) {
        case 1: return down_rows<V, 1>(a, begin, end);
        case 2: return down_rows<V, 2>(a, begin, end);
        default: return down_rows<V, 4>(a, begin, end);
    }
}

// The sums of COLUMNS columns, 8 or 16, one a lane; 8 leave the upper lanes 0.
template <class V, int COLUMNS>
inline __m512 up_tile(const Term& term, int token, int64_t column) {
    using T = typename V::T;
    const T* h = static_cast<const T*>(term.h[token]);
    const T* w = static_cast<const T*>(term.w_up) + column * term.row_stride;
    __m512 sums[16];
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    int64_t j = 0;
    for (; j + V::LANES <= term.rank; j += V::LANES) {
        const auto hs = V::load(h + j);
        for (int c = 0; c < COLUMNS; ++c) sums[c] = V::dot(sums[c], V::load(w + c * term.row_stride + j), hs);
    }
    if (j < term.rank) {
        const auto hs = V::load(h + j);
        for (int c = 0; c < COLUMNS; ++c) {
            sums[c] = V::dot(sums[c], V::load(w + c * term.row_stride + j, term.rank - j), hs);
        }
    }
    return sum_each(sums);
}

template <class V, int COLUMNS>
inline void up_columns(const Up& a, int64_t column) {
    using T = typename V::T;
    for (int i = 0; i < a.tokens; ++i) {
        __m512 y = V::widen(static_cast<const T*>(a.x[i]) + column, COLUMNS);
        for (int64_t k = 0; k < a.term_count; ++k) y = _mm512_add_ps(y, up_tile<V, COLUMNS>(a.terms[k], i, column));
        V::store(static_cast<T*>(a.y[i]) + column, y, COLUMNS);
    }
}

template <class V>
void up(const Up& a, int64_t begin, int64_t end) {
    int64_t column = begin;
    for (; column + 16 <= end; column += 16) up_columns<V, 16>(a, column);
    if (column < end) up_columns<V, 8>(a, column);
}

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline __m512 widen_bf16(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

}  // namespace
}  // namespace unlearn
