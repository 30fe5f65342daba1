// Eight lanes at a time, and the few functions of them. Sums always run in the same order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define ELCHAT_AVX2 1
#endif

namespace elchat {

typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8x __attribute__((vector_size(32), aligned(4)));

inline f8 load8(const float *p) { return *reinterpret_cast<const f8 *>(p); }
inline void store8(float *p, f8 v) { *reinterpret_cast<f8 *>(p) = v; }
inline f8 all8(float x) { return f8{x, x, x, x, x, x, x, x}; }

// sum + a * b, rounded once where the processor can: said aloud, lest it depend on the inlining.
inline f8 fma8(f8 sum, f8 a, f8 b) {
#ifdef ELCHAT_AVX2
    return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return sum + a * b;
#endif
}

inline float sum8(f8 v) {
#ifdef ELCHAT_AVX2
    const __m256 pairs = _mm256_hadd_ps((__m256)v, (__m256)v);
    const __m256 fours = _mm256_hadd_ps(pairs, pairs);
    return _mm_cvtss_f32(
        _mm_add_ss(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
#else
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
#endif
}

// Eight integers that fit in a byte.
inline void store_bytes(int8_t *p, i8x v) {
#ifdef ELCHAT_AVX2
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v),
                                          _mm256_extracti128_si256((__m256i)v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(words, words));
#else
    for (int j = 0; j < 8; j++) p[j] = static_cast<int8_t>(v[j]);
#endif
}

inline f8 larger(f8 a, f8 b) { return a > b ? a : b; }

inline float max8(f8 v) {
    v = larger(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = larger(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    return v[0] > v[1] ? v[0] : v[1];
}

inline int32_t sum8(i8x v) {
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v[0] + v[1];
}

inline bool any8(i8x v) {
    v |= __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v |= __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    return (v[0] | v[1]) != 0;
}

// Source: Cephes expf.
constexpr float kExp[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                           4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

// e^x to 2 units in the last place, 0 below -87. Range reduction to |r| <= ln 2 / 2, then a
// degree-6 Taylor-like polynomial.
inline f8 exp8(f8 x) {
    const f8 low = all8(-87.3f);
    i8x is_zero = x < low;
    x = larger(x, low);
    f8 scaled = x * 1.44269504088896341f;
    f8 half = scaled < 0.0f ? all8(-0.5f) : all8(0.5f);
    i8x n = __builtin_convertvector(scaled + half, i8x);
    f8 m = __builtin_convertvector(n, f8);
    f8 r = x - m * 0.693359375f;
    r = r - m * -2.12194440e-4f;
    f8 p = all8(kExp[0]);
    for (int i = 1; i < 6; i++) p = p * r + kExp[i];
    f8 y = p * r * r + r + 1.0f;
    i8x bits;
    std::memcpy(&bits, &y, 32);
    bits += n << 23;
    bits &= ~is_zero;
    std::memcpy(&y, &bits, 32);
    return y;
}

inline float half_to_float(uint16_t h) {
#ifdef ELCHAT_AVX2
    return _cvtsh_ss(h);
#else
    _Float16 value;
    std::memcpy(&value, &h, 2);
    return static_cast<float>(value);
#endif
}

}  // namespace elchat
