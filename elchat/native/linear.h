// y[m, n] = sum over k of x[m, k] * w[n, k], for weights in fp32, int8 and int4.
//
// Both operands are read along k, so a dot product is one straight walk and nothing is repacked.
// A block of MR rows of x and NR rows of w shares its loads. Each (m, n) has its own accumulator
// and its own order of addition: the result does not depend on how many rows are computed
// together, which is what makes a reply the same alone and in a batch.
//
// Integer weights meet activations of up to 15 bits (int16), one scale for each row of x. The
// largest activation is chosen so that no int32 sum can overflow: `activation_limit`. Integer sums
// are exact, hence also equal on every machine.
#pragma once

#include "vector.h"

namespace elchat {

enum Kind : int32_t { kFp32 = 0, kInt8 = 1, kInt4 = 2 };
constexpr int kGroup = 32;  // int4: weights that share a scale

struct Matrix {
    const void *weights;    // [n, k] float or int8; int4: [n, k / 32, 16], low nibbles first
    const void *scales;     // int8: [n] float; int4: [n, k / 32] half
    const float *bias;      // [n] or null
    int32_t kind, n, k;
};

// Rows of x as the matrix wants them.
struct Operand {
    const float *f32;       // [m, k]
    const int16_t *i16;     // [m, k]
    const float *scale;     // [m]
};

inline int activation_limit(const Matrix &w) {
    if (w.kind == kInt4) return 32767;  // a group's sum stays below 2^24: exact in float too
    int64_t limit = ((int64_t{1} << 31) - 1) / (int64_t{127} * w.k);
    return static_cast<int>(limit < 32767 ? limit : 32767);
}

inline float quantize_row(const float *x, int k, int limit, int16_t *out) {
    f8 top = all8(0.0f);
    for (int i = 0; i < k; i += 8) {
        f8 v = load8(x + i);
        top = larger(top, larger(v, -v));
    }
    float largest = max8(top);
    if (!(largest > 0.0f) || !std::isfinite(largest)) {
        std::memset(out, 0, sizeof(int16_t) * k);
        return largest == 0.0f ? 0.0f : NAN;
    }
    float inverse = static_cast<float>(limit) / largest;
    for (int i = 0; i < k; i += 8) {
        f8 v = load8(x + i) * inverse;
        v += v < 0.0f ? all8(-0.5f) : all8(0.5f);
        i8x q = __builtin_convertvector(v, i8x);
        for (int j = 0; j < 8; j++) out[i + j] = static_cast<int16_t>(q[j]);
    }
    return largest / static_cast<float>(limit);
}

#ifdef ELCHAT_AVX2

inline int32_t sum_lanes(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
}

template <int MR, int NR>
inline void dot_int8(const int16_t *x, const int8_t *w, int k, int32_t (&out)[MR][NR]) {
    __m256i acc[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) acc[m][n] = _mm256_setzero_si256();
    for (int i = 0; i < k; i += 16) {
        __m256i wide[NR];
        for (int n = 0; n < NR; n++)
            wide[n] = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(w + size_t(n) * k + i)));
        for (int m = 0; m < MR; m++) {
            __m256i xv =
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + size_t(m) * k + i));
            for (int n = 0; n < NR; n++)
                acc[m][n] = _mm256_add_epi32(acc[m][n], _mm256_madd_epi16(xv, wide[n]));
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) out[m][n] = sum_lanes(acc[m][n]);
}

template <int MR, int NR>
inline void dot_int4(const int16_t *x, const uint8_t *w, const uint16_t *scales, int k,
                     float (&out)[MR][NR]) {
    const __m128i mask = _mm_set1_epi8(15);
    const __m256i eight = _mm256_set1_epi8(8);
    const int groups = k / kGroup;
    __m256 acc[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) acc[m][n] = _mm256_setzero_ps();
    for (int g = 0; g < groups; g++) {
        __m256i low[NR], high[NR];
        __m256 scale[NR];
        for (int n = 0; n < NR; n++) {
            const uint8_t *p = w + (size_t(n) * groups + g) * 16;
            __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
            __m256i both = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(packed, 4), mask),
                                            _mm_and_si128(packed, mask));
            both = _mm256_sub_epi8(both, eight);
            low[n] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(both));
            high[n] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(both, 1));
            scale[n] = _mm256_set1_ps(half_to_float(scales[size_t(n) * groups + g]));
        }
        for (int m = 0; m < MR; m++) {
            const __m256i *p =
                reinterpret_cast<const __m256i *>(x + size_t(m) * k + g * kGroup);
            __m256i first = _mm256_loadu_si256(p), second = _mm256_loadu_si256(p + 1);
            for (int n = 0; n < NR; n++) {
                __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(first, low[n]),
                                               _mm256_madd_epi16(second, high[n]));
                acc[m][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale[n], acc[m][n]);
            }
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) out[m][n] = sum8((f8)acc[m][n]);
}

#else  // any other processor: the same sums, left to the compiler's vectoriser

template <int MR, int NR>
inline void dot_int8(const int16_t *x, const int8_t *w, int k, int32_t (&out)[MR][NR]) {
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            int32_t sum = 0;
            for (int i = 0; i < k; i++)
                sum += int32_t(x[size_t(m) * k + i]) * w[size_t(n) * k + i];
            out[m][n] = sum;
        }
}

template <int MR, int NR>
inline void dot_int4(const int16_t *x, const uint8_t *w, const uint16_t *scales, int k,
                     float (&out)[MR][NR]) {
    const int groups = k / kGroup;
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            f8 acc = all8(0.0f);
            for (int g = 0; g < groups; g++) {
                const uint8_t *p = w + (size_t(n) * groups + g) * 16;
                const int16_t *xg = x + size_t(m) * k + g * kGroup;
                i8x sum = {0, 0, 0, 0, 0, 0, 0, 0};
                for (int j = 0; j < 8; j++)  // lane j: pairs 2j, 2j + 1 of each half, as madd
                    for (int e = 2 * j; e < 2 * j + 2; e++)
                        sum[j] += xg[e] * ((p[e] & 15) - 8) + xg[e + 16] * ((p[e] >> 4) - 8);
                acc += __builtin_convertvector(sum, f8) *
                       half_to_float(scales[size_t(n) * groups + g]);
            }
            out[m][n] = sum8(acc);
        }
}

#endif

template <int MR, int NR>
inline void dot_fp32(const float *x, const float *w, int k, float (&out)[MR][NR]) {
    f8 acc[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) acc[m][n] = all8(0.0f);
    for (int i = 0; i < k; i += 8) {
        f8 wv[NR];
        for (int n = 0; n < NR; n++) wv[n] = load8(w + size_t(n) * k + i);
        for (int m = 0; m < MR; m++) {
            f8 xv = load8(x + size_t(m) * k + i);
            for (int n = 0; n < NR; n++) acc[m][n] += xv * wv[n];
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) out[m][n] = sum8(acc[m][n]);
}

template <int MR, int NR, class Write>
inline void block(const Matrix &w, const Operand &x, int m, int n, Write &&write) {
    float out[MR][NR];
    if (w.kind == kInt8) {
        int32_t sums[MR][NR];
        dot_int8<MR, NR>(x.i16 + size_t(m) * w.k,
                         static_cast<const int8_t *>(w.weights) + size_t(n) * w.k, w.k, sums);
        const float *scales = static_cast<const float *>(w.scales) + n;
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++)
                out[i][j] = static_cast<float>(sums[i][j]) * (x.scale[m + i] * scales[j]);
    } else if (w.kind == kInt4) {
        const size_t groups = w.k / kGroup;
        dot_int4<MR, NR>(x.i16 + size_t(m) * w.k,
                         static_cast<const uint8_t *>(w.weights) + n * groups * 16,
                         static_cast<const uint16_t *>(w.scales) + n * groups, w.k, out);
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++) out[i][j] *= x.scale[m + i];
    } else {
        dot_fp32<MR, NR>(x.f32 + size_t(m) * w.k,
                         static_cast<const float *>(w.weights) + size_t(n) * w.k, w.k, out);
    }
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++)
            write(m + i, n + j, out[i][j] + (w.bias ? w.bias[n + j] : 0.0f));
}

template <int MR, class Write>
inline void rows(const Matrix &w, const Operand &x, int m, int begin, int end, Write &&write) {
    constexpr int NR = MR == 1 ? 4 : 3;
    int n = begin;
    for (; n + NR <= end; n += NR) block<MR, NR>(w, x, m, n, write);
    for (; n < end; n++) block<MR, 1>(w, x, m, n, write);
}

// Outputs begin..end-1 of `count` rows; calls write(m, n, value).
template <class Write>
inline void linear(const Matrix &w, const Operand &x, int count, int begin, int end,
                   Write &&write) {
    int m = 0;
    for (; m + 4 <= count; m += 4) rows<4>(w, x, m, begin, end, write);
    if (count - m == 3) rows<3>(w, x, m, begin, end, write);
    if (count - m == 2) rows<2>(w, x, m, begin, end, write);
    if (count - m == 1) rows<1>(w, x, m, begin, end, write);
}

}  // namespace elchat
