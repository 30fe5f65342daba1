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
constexpr int kStripBytes = 14 << 10, kFetchAheadBytes = 2304;

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
        store_int16(out + i, __builtin_convertvector(v, i8x));
    }
    return largest / static_cast<float>(limit);
}

#ifdef ELCHAT_AVX2

// One core asks for memory this far ahead: 8 GB/s without it, 17-20 with it (int8, one row of x).
inline void fetch(const void *p) {
    _mm_prefetch(static_cast<const char *>(p) + kFetchAheadBytes, _MM_HINT_T0);
}

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
        if ((i & 63) == 0)
            for (int n = 0; n < NR; n++) fetch(w + size_t(n) * k + i);
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
    const __m256i mask = _mm256_set1_epi16(15), eight = _mm256_set1_epi16(8);
    const int groups = k / kGroup;
    __m256 acc[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) acc[m][n] = _mm256_setzero_ps();
    for (int g = 0; g < groups; g++) {
        if ((g & 3) == 0)
            for (int n = 0; n < NR; n++) fetch(w + (size_t(n) * groups + g) * 16);
        __m256i low[NR], high[NR];
        __m256 scale[NR];
        for (int n = 0; n < NR; n++) {
            const size_t at = size_t(n) * groups + g;
            const __m256i packed = _mm256_cvtepu8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(w + at * 16)));
            low[n] = _mm256_sub_epi16(_mm256_and_si256(packed, mask), eight);
            high[n] = _mm256_sub_epi16(_mm256_srli_epi16(packed, 4), eight);
            scale[n] = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(scales[at])));
        }
        for (int m = 0; m < MR; m++) {
            const __m256i *p =
                reinterpret_cast<const __m256i *>(x + size_t(m) * k + g * kGroup);
            const __m256i first = _mm256_loadu_si256(p), second = _mm256_loadu_si256(p + 1);
            for (int n = 0; n < NR; n++) {
                const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(first, low[n]),
                                                     _mm256_madd_epi16(second, high[n]));
                acc[m][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale[n], acc[m][n]);
            }
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) out[m][n] = sum8((f8)acc[m][n]);
}

template <int MR, int NR>
inline void dot_fp32(const float *x, const float *w, int k, float (&out)[MR][NR]) {
    __m256 acc[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) acc[m][n] = _mm256_setzero_ps();
    for (int i = 0; i < k; i += 8) {
        if ((i & 15) == 0)
            for (int n = 0; n < NR; n++) fetch(w + size_t(n) * k + i);
        __m256 wide[NR];
        for (int n = 0; n < NR; n++) wide[n] = _mm256_loadu_ps(w + size_t(n) * k + i);
        for (int m = 0; m < MR; m++) {
            const __m256 xv = _mm256_loadu_ps(x + size_t(m) * k + i);
            for (int n = 0; n < NR; n++) acc[m][n] = _mm256_fmadd_ps(xv, wide[n], acc[m][n]);
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

#endif

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
    // A single row of x waits for memory, and one stream of it is the fastest to read.
    const bool is_paired = MR > 1 || w.kind == kInt4;
    int n = begin;
    if (is_paired)
        for (; n + 2 <= end; n += 2) block<MR, 2>(w, x, m, n, write);
    for (; n < end; n++) block<MR, 1>(w, x, m, n, write);
}

// Outputs begin..end-1 of `count` rows; calls write(m, n, value). Weights are taken in strips that
// stay in the first-level cache while every row of x passes.
template <class Write>
inline void linear(const Matrix &w, const Operand &x, int count, int begin, int end,
                   Write &&write) {
    const int bytes = w.kind == kFp32 ? 4 * w.k : w.kind == kInt8 ? w.k : w.k * 9 / 16;
    const int strip = count <= 4 ? end - begin : (kStripBytes / bytes > 2 ? kStripBytes / bytes & ~1 : 2);
    for (int from = begin; from < end; from += strip) {
        const int to = from + strip < end ? from + strip : end;
        int m = 0;
        for (; m + 4 <= count; m += 4) rows<4>(w, x, m, from, to, write);
        if (count - m == 3) rows<3>(w, x, m, from, to, write);
        if (count - m == 2) rows<2>(w, x, m, from, to, write);
        if (count - m == 1) rows<1>(w, x, m, from, to, write);
    }
}

}  // namespace elchat
