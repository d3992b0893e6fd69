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
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const __m512 low = a[4 * (i % 4) + i / 4], high = a[4 * (i % 4) + i / 4 + 2];
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(low, high), _mm512_unpackhi_ps(low, high));
    }
#pragma GCC unroll 4
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

// Turns 16 rows of 16 32-bit lanes into 16 columns: lane c of w[p] becomes lane p of row c.
inline void transpose(__m512 (&w)[16]) {
    __m512d pairs[16];
    __m512 quads[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_castps_pd(_mm512_unpacklo_ps(w[i], w[i + 1]));
        pairs[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(w[i], w[i + 1]));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {  // quads[i + q]: column q of each 128-bit lane, of rows i to i + 3
        quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i], pairs[i + 2]));
        quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i], pairs[i + 2]));
        quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i + 1], pairs[i + 3]));
        quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i + 1], pairs[i + 3]));
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const __m512 even_low = _mm512_shuffle_f32x4(quads[q], quads[4 + q], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(quads[q], quads[4 + q], 0xDD);
        const __m512 even_high = _mm512_shuffle_f32x4(quads[8 + q], quads[12 + q], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(quads[8 + q], quads[12 + q], 0xDD);
        w[q] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        w[4 + q] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        w[8 + q] = _mm512_shuffle_f32x4(even_low, even_high, 0xDD);
        w[12 + q] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xDD);
    }
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

// How the weights of one step are loaded. No lambdas in this file: in templates, GCC compiles them without the pragma's
// instruction set.
template <class V>
struct Whole {
    typename V::Vector operator()(const typename V::T* p) const { return V::load(p); }
};

template <class V>
struct Rest {
    int64_t n;
    typename V::Vector operator()(const typename V::T* p) const { return V::load(p, n); }
};

// sums[i, j] += w[j] x[i] over the step's entries from k on.
template <class V, int TOKENS, class Load>
inline void down_step(
    __m512 (&sums)[16], const typename V::T* const (&w)[16 / TOKENS], const typename V::T* const (&x)[TOKENS], int64_t k,
    Load load) {
    constexpr int ROWS = 16 / TOKENS;
    typename V::Vector xs[TOKENS];
#pragma GCC unroll 4
    for (int i = 0; i < TOKENS; ++i) xs[i] = load(x[i] + k);
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; ++j) {
        const auto ws = load(w[j] + k);
#pragma GCC unroll 4
        for (int i = 0; i < TOKENS; ++i) sums[i * ROWS + j] = V::dot(sums[i * ROWS + j], ws, xs[i]);
    }
}

// 16 accumulators, whatever the number of tokens: TOKENS x ROWS, summed and activated together. Of the TOKENS tokens
// from `first` on, those past a.tokens repeat the last one and are not stored; so do rows past the rank.
template <class V, int TOKENS>
void down_tile(const Down& a, int32_t first, int64_t row) {
    using T = typename V::T;
    constexpr int ROWS = 16 / TOKENS;
    const T* w[ROWS];
    const T* x[TOKENS];
#pragma GCC unroll 16
    for (int j = 0; j < ROWS; ++j) {
        const int64_t inside = row + j < a.rank ? row + j : a.rank - 1;
        w[j] = static_cast<const T*>(a.w_down) + inside * a.row_stride;
    }
#pragma GCC unroll 4
    for (int i = 0; i < TOKENS; ++i) x[i] = static_cast<const T*>(a.x[first + i < a.tokens ? first + i : a.tokens - 1]);
    __m512 sums[16];
#pragma GCC unroll 16
    for (int q = 0; q < 16; ++q) sums[q] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + V::LANES <= a.d; k += V::LANES) down_step<V, TOKENS>(sums, w, x, k, Whole<V>{});
    if (k < a.d) down_step<V, TOKENS>(sums, w, x, k, Rest<V>{a.d - k});

    T h[16];
    V::store(h, activate(sum_each(sums), a.activation), 16);
    for (int i = 0; i < TOKENS && first + i < a.tokens; ++i) {
        T* to = static_cast<T*>(a.h[first + i]) + row;
        for (int j = 0; j < ROWS; ++j) to[j] = row + j < a.rank ? h[i * ROWS + j] : T{};
    }
}

template <class V, int TOKENS>
void down_rows(const Down& a, int32_t first, int64_t begin, int64_t end) {
    int64_t row = begin;
    for (; row < end && row < a.rank; row += 16 / TOKENS) down_tile<V, TOKENS>(a, first, row);
    for (int32_t i = first; i < first + TOKENS && i < a.tokens && row < end; ++i) {
        std::memset(static_cast<typename V::T*>(a.h[i]) + row, 0, (end - row) * sizeof(typename V::T));
    }
}

template <class V>
void down(const Down& a, int64_t begin, int64_t end) {
    for (int32_t first = 0; first < a.tokens; first += 4) {
        switch (a.tokens - first) {
            case 1: down_rows<V, 1>(a, first, begin, end); break;
            case 2: down_rows<V, 2>(a, first, begin, end); break;
            default: down_rows<V, 4>(a, first, begin, end);
        }
    }
}

// sums[i], one column a lane, += w h[i] over the step's entries.
template <class V, int COLUMNS, int TOKENS, class Load>
inline void turned_step(__m512 (&sums)[TOKENS], const Term& term, const typename V::T* w, int64_t j, Load load) {
    __m512 turned[16];
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) {
        turned[c] = c < COLUMNS ? V::as_floats(load(w + c * term.row_stride + j)) : _mm512_setzero_ps();
    }
    transpose(turned);
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
#pragma GCC unroll 8
        for (int i = 0; i < TOKENS; ++i) {
            const auto h = V::broadcast(static_cast<const typename V::T*>(term.h[i]) + j, p);
            sums[i] = V::dot(sums[i], V::from_floats(turned[p]), h);
        }
    }
}

// sums[i] += the term of TOKENS tokens for COLUMNS columns, 8 or 16. Turning the weights once costs less than adding up
// lanes for each token.
template <class V, int COLUMNS, int TOKENS>
inline void turned_tiles(__m512 (&sums)[TOKENS], const Term& term, int64_t column) {
    const auto* w = static_cast<const typename V::T*>(term.w_up) + column * term.row_stride;
    int64_t j = 0;
    for (; j + V::LANES <= term.rank; j += V::LANES) turned_step<V, COLUMNS>(sums, term, w, j, Whole<V>{});
    if (j < term.rank) turned_step<V, COLUMNS>(sums, term, w, j, Rest<V>{term.rank - j});
}

template <class V, int COLUMNS, int TOKENS>
inline void up_columns(const Up& a, int64_t column) {
    using T = typename V::T;
    __m512 y[TOKENS];
#pragma GCC unroll 8
    for (int i = 0; i < TOKENS; ++i) y[i] = V::widen(static_cast<const T*>(a.x[i]) + column, COLUMNS);
    for (int64_t k = 0; k < a.term_count; ++k) turned_tiles<V, COLUMNS>(y, a.terms[k], column);
#pragma GCC unroll 8
    for (int i = 0; i < TOKENS; ++i) V::store(static_cast<T*>(a.y[i]) + column, y[i], COLUMNS);
}

template <class V, int TOKENS>
void up_tokens(const Up& a, int64_t begin, int64_t end) {
    int64_t column = begin;
    for (; column + 16 <= end; column += 16) up_columns<V, 16, TOKENS>(a, column);
    if (column < end) up_columns<V, 8, TOKENS>(a, column);
}

template <class V>
void up(const Up& a, int64_t begin, int64_t end) {
    static_assert(CHUNK == 8);
    switch (a.tokens) {
        case 1: return up_tokens<V, 1>(a, begin, end);
        case 2: return up_tokens<V, 2>(a, begin, end);
        case 3: return up_tokens<V, 3>(a, begin, end);
        case 4: return up_tokens<V, 4>(a, begin, end);
        case 5: return up_tokens<V, 5>(a, begin, end);
        case 6: return up_tokens<V, 6>(a, begin, end);
        case 7: return up_tokens<V, 7>(a, begin, end);
        default: return up_tokens<V, 8>(a, begin, end);
    }
}

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline __m512 widen_bf16(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

}  // namespace
}  // namespace unlearn
