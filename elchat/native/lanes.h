// Sixteen outputs side by side, and the few instructions that differ between processors.
//
// Three sets: AVX-512 with VNNI, AVX2, and plain loops for any other processor. The same sums in
// the same order in all of them: integers are exact, and every output adds its floats one by one.
//
//   F    sixteen float sums            fma(f, a, x): f + a[i] * x
//   I    sixteen integer sums          dot(acc, w, x): acc + four products for each output
//   W    64 bytes of weights: four consecutive inputs (unsigned) of each of sixteen outputs
//   X    the same four inputs of one row (signed), as `dot` wants them
#pragma once

#include "vector.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define ELCHAT_VNNI 1
#endif

namespace elchat {

constexpr int kLanes = 16;

#if defined(ELCHAT_VNNI)

constexpr int kRowsFp32 = 6, kRowsInt = 6, kHalves = 2;  // register blocks: rows x 16-lane halves

using F = __m512;
using I = __m512i;
using W = __m512i;
using X = __m512i;

inline F zeros() { return _mm512_setzero_ps(); }
inline F load(const float *p) { return _mm512_loadu_ps(p); }
inline F load_halves(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
inline void store(float *p, F f) { _mm512_storeu_ps(p, f); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F all(float x) { return _mm512_set1_ps(x); }
inline F fma(F f, F a, float x) { return _mm512_fmadd_ps(a, _mm512_set1_ps(x), f); }
// As exp8.
inline F exp(F x) {
    const __mmask16 is_small = _mm512_cmp_ps_mask(x, all(-87.3f), _CMP_LT_OQ);
    x = _mm512_max_ps(all(-87.3f), x);  // in this order what is not a number stays so
    const F n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
    F r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    F p = _mm512_set1_ps(kExp[0]);
    for (int i = 1; i < 6; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExp[i]));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, all(1.0f)));
    return _mm512_mask_blend_ps(is_small, _mm512_scalef_ps(p, n), zeros());
}

inline I start(int32_t x) { return _mm512_set1_epi32(x); }
inline W load_bytes(const uint8_t *p) { return _mm512_loadu_si512(p); }
inline void split_nibbles(W both, W &first, W &second) {
    const __m512i mask = _mm512_set1_epi8(15);
    first = _mm512_and_si512(both, mask);
    second = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}
inline X four(const int8_t *p) {
    int32_t bytes;
    std::memcpy(&bytes, p, 4);
    return _mm512_set1_epi32(bytes);
}
inline I dot(I acc, W w, X x) { return _mm512_dpbusd_epi32(acc, w, x); }
inline F to_float(I acc) { return _mm512_cvtepi32_ps(acc); }

#elif defined(ELCHAT_AVX2)

constexpr int kRowsFp32 = 6, kRowsInt = 2, kHalves = 1;

struct F { __m256 a, b; };
struct I { __m256i part[4]; };  // four outputs each, as pairs of sums still to be added
struct W { __m256i part[4]; };  // widened to 16 bits
using X = __m256i;

inline F zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F load_halves(const uint16_t *p) {
    const __m128i *q = reinterpret_cast<const __m128i *>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline void store(float *p, F f) {
    _mm256_storeu_ps(p, f.a);
    _mm256_storeu_ps(p + 8, f.b);
}
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F fma(F f, F a, float x) {
    const __m256 all = _mm256_set1_ps(x);
    return {_mm256_fmadd_ps(a.a, all, f.a), _mm256_fmadd_ps(a.b, all, f.b)};
}
inline F exp(F x) { return {(__m256)exp8((f8)x.a), (__m256)exp8((f8)x.b)}; }

inline I start(int32_t x) {
    const __m256i one = _mm256_set1_epi64x(static_cast<uint32_t>(x));  // the first of each pair
    return {{one, one, one, one}};
}
inline __m256i widen(__m128i bytes) { return _mm256_cvtepu8_epi16(bytes); }
inline W load_bytes(const uint8_t *p) {
    const __m128i *q = reinterpret_cast<const __m128i *>(p);
    return {{widen(_mm_loadu_si128(q)), widen(_mm_loadu_si128(q + 1)),
             widen(_mm_loadu_si128(q + 2)), widen(_mm_loadu_si128(q + 3))}};
}
inline void split_nibbles(W both, W &first, W &second) {
    const __m256i mask = _mm256_set1_epi16(15);
    for (int i = 0; i < 4; i++) {
        first.part[i] = _mm256_and_si256(both.part[i], mask);
        second.part[i] = _mm256_srli_epi16(both.part[i], 4);
    }
}
inline X four(const int8_t *p) {
    int32_t bytes;
    std::memcpy(&bytes, p, 4);
    return _mm256_cvtepi8_epi16(_mm_set1_epi32(bytes));
}
inline I dot(I acc, W w, X x) {
    for (int i = 0; i < 4; i++)
        acc.part[i] = _mm256_add_epi32(acc.part[i], _mm256_madd_epi16(w.part[i], x));
    return acc;
}
inline __m256 to_float(__m256i a, __m256i b) {
    const __m256i pairs = _mm256_hadd_epi32(a, b);  // outputs 0 1 4 5 2 3 6 7
    return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(pairs, 0xD8));
}
inline F to_float(I acc) {
    return {to_float(acc.part[0], acc.part[1]), to_float(acc.part[2], acc.part[3])};
}

#else  // left to the compiler's vectoriser

constexpr int kRowsFp32 = 2, kRowsInt = 2, kHalves = 1;

struct F { float lane[kLanes]; };
struct I { int32_t lane[kLanes]; };
struct W { const uint8_t *bytes; uint8_t shift, mask; };
using X = const int8_t *;

inline F zeros() { return {}; }
inline F load(const float *p) {
    F f;
    std::memcpy(f.lane, p, sizeof f.lane);
    return f;
}
inline F load_halves(const uint16_t *p) {
    F f;
    for (int i = 0; i < kLanes; i++) f.lane[i] = half_to_float(p[i]);
    return f;
}
inline void store(float *p, F f) { std::memcpy(p, f.lane, sizeof f.lane); }
inline F add(F x, F y) {
    for (int i = 0; i < kLanes; i++) x.lane[i] += y.lane[i];
    return x;
}
inline F sub(F x, F y) {
    for (int i = 0; i < kLanes; i++) x.lane[i] -= y.lane[i];
    return x;
}
inline F mul(F x, F y) {
    for (int i = 0; i < kLanes; i++) x.lane[i] *= y.lane[i];
    return x;
}
inline F div(F x, F y) {
    for (int i = 0; i < kLanes; i++) x.lane[i] /= y.lane[i];
    return x;
}
inline F all(float x) {
    F f;
    for (float &lane : f.lane) lane = x;
    return f;
}
inline F fma(F f, F a, float x) {
    for (int i = 0; i < kLanes; i++) f.lane[i] += a.lane[i] * x;
    return f;
}
inline F exp(F x) {
    F f;
    for (int i = 0; i < kLanes; i += 8) store8(f.lane + i, exp8(load8(x.lane + i)));
    return f;
}

inline I start(int32_t x) {
    I acc;
    for (int i = 0; i < kLanes; i++) acc.lane[i] = x;
    return acc;
}
inline W load_bytes(const uint8_t *p) { return {p, 0, 255}; }
inline void split_nibbles(W both, W &first, W &second) {
    first = {both.bytes, 0, 15};
    second = {both.bytes, 4, 15};
}
inline X four(const int8_t *p) { return p; }
inline I dot(I acc, W w, X x) {
    for (int i = 0; i < kLanes; i++)
        for (int j = 0; j < 4; j++)
            acc.lane[i] += int32_t((w.bytes[4 * i + j] >> w.shift) & w.mask) * x[j];
    return acc;
}
inline F to_float(I acc) {
    F f;
    for (int i = 0; i < kLanes; i++) f.lane[i] = static_cast<float>(acc.lane[i]);
    return f;
}

#endif

}  // namespace elchat
