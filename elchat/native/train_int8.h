// Matrices of a backward pass as bytes with a scale, and their integer products as floats again.
//
// A product that sums over the width wants a scale for each row, one that sums over the rows a scale
// for each column. What is not finite survives in its scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "train.h"

namespace elchat {

inline __m512 load(const float *p) { return _mm512_loadu_ps(p); }
inline void store(float *p, __m512 v) { _mm512_storeu_ps(p, v); }

// The bits of |v|: as integers they grow with it, and a NaN is the largest of all.
inline __m512i magnitude(__m512 v) {
    return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
}

// What brings the largest magnitude to 127, and back.
struct Scale {
    float scale, inverse;
    explicit Scale(uint32_t largest) {
        float top;
        std::memcpy(&top, &largest, 4);
        scale = std::isfinite(top) ? top / 127.0f : std::numeric_limits<float>::quiet_NaN();
        inverse = scale >= std::numeric_limits<float>::min() ? 127.0f / top : 0.0f;
    }
};

template <class T>
inline void round_row(const T *row, int64_t c, const float *inverse, int each, int8_t *bytes) {
    for (int64_t j = 0; j < c; j += 16) {
        const __m512 by = each ? _mm512_loadu_ps(inverse + j) : _mm512_set1_ps(*inverse);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load(row + j), by));
        _mm_storeu_si128((__m128i *)(bytes + j), _mm512_cvtsepi32_epi8(whole));
    }
}

// x [n, c] as bytes: by_column with column_scale [c] and, unless null, by_row with row_scale [n];
// and, unless null, its copy in bfloat16.
template <class T>
void quantize(const T *x, int64_t n, int64_t c, int8_t *by_row, float *row_scale, int8_t *by_column,
              float *column_scale, bf16 *copy) {
    constexpr int kParts = 16;
    std::vector<uint32_t> tops((size_t)kParts * c, 0);
    std::vector<float> inverse(c);
#pragma omp parallel for
    for (int part = 0; part < kParts; part++)
        for (int64_t i = n * part / kParts; i < n * (part + 1) / kParts; i++) {
            uint32_t *columns = tops.data() + (size_t)part * c;
            __m512i top = _mm512_setzero_si512();
            for (int64_t j = 0; j < c; j += 16) {
                const __m512 v = load(x + i * c + j);
                const __m512i size = magnitude(v);
                if (copy) store(copy + i * c + j, v);
                top = _mm512_max_epu32(top, size);
                _mm512_storeu_si512(columns + j,
                                    _mm512_max_epu32(_mm512_loadu_si512(columns + j), size));
            }
            if (!by_row) continue;
            const Scale s(_mm512_reduce_max_epu32(top));
            row_scale[i] = s.scale;
            round_row(x + i * c, c, &s.inverse, 0, by_row + i * c);
        }
    for (int part = 1; part < kParts; part++)
        for (int64_t j = 0; j < c; j++) tops[j] = std::max(tops[j], tops[(size_t)part * c + j]);
    for (int64_t j = 0; j < c; j++) {
        const Scale s(tops[j]);
        column_scale[j] = s.scale;
        inverse[j] = s.inverse;
    }
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++)
        if (copy)  // half the bytes, and nearer
            round_row(copy + i * c, c, inverse.data(), 1, by_column + i * c);
        else
            round_row(x + i * c, c, inverse.data(), 1, by_column + i * c);
}

// y (+)= product · row scale · column scale, [n, c].
template <class T>
void dequantize(const int32_t *product, const float *row_scale, const float *column_scale, int64_t n,
                int64_t c, T *y, bool adds) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        const __m512 scale = _mm512_set1_ps(row_scale[i]);
        for (int64_t j = 0; j < c; j += 16) {
            const int64_t at = i * c + j;
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(product + at));
            const __m512 both = _mm512_mul_ps(scale, load(column_scale + j));
            store(y + at, adds ? _mm512_fmadd_ps(sum, both, load(y + at)) : _mm512_mul_ps(sum, both));
        }
    }
}

}  // namespace elchat
