// Vectors of sixteen floats, bfloat16 in memory, and the one small product attention is made of.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace elchat {

typedef uint16_t bf16;  // the upper half of a float

constexpr int kBlock = 64;  // tokens attended to at once; the columns of a tile

inline __m512 load(const bf16 *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(bf16 *p, __m512 v) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v));
}

// e^x to about 2 units in the last place; e^-87 below -87.
inline __m512 exp16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // in this order a NaN stays one
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.3981999507e-3f);  // Source: Cephes expf (coefficients)
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// Two rows as pairs: out[i] holds (first[i], second[i]), what the product instruction sums.
inline void pair_rows(const bf16 *first, const bf16 *second, int width, uint32_t *out) {
    for (int i = 0; i < width; i += 16) {
        const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(first + i)));
        const __m512i high =
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(second + i)));
        _mm512_storeu_si512(out + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// C[R×64] (+)= A[R×2k]·B, where b[i·ldb + column] holds rows 2i and 2i + 1 of B.
template <int R>
inline void tile(const bf16 *a, int64_t lda, const uint32_t *b, int ldb, int k, float *c, int ldc,
                 bool adds) {
    __m512 sum[R][4];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 4; j++)
            sum[r][j] = adds ? _mm512_loadu_ps(c + r * ldc + 16 * j) : _mm512_setzero_ps();
    for (int i = 0; i < k; i++) {
        __m512bh columns[4];
        for (int j = 0; j < 4; j++)
            columns[j] = (__m512bh)_mm512_loadu_si512(b + (int64_t)i * ldb + 16 * j);
        for (int r = 0; r < R; r++) {
            uint32_t pair;
            std::memcpy(&pair, a + r * lda + 2 * i, 4);
            const __m512bh both = (__m512bh)_mm512_set1_epi32((int)pair);
            for (int j = 0; j < 4; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], both, columns[j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(c + r * ldc + 16 * j, sum[r][j]);
}

// The same for any number of rows and columns in multiples of 64.
inline void product(int rows, int columns, const bf16 *a, int64_t lda, const uint32_t *b, int k,
                    float *c, bool adds) {
    for (int at = 0; at < columns; at += kBlock) {
        int r = 0;
        for (; r + 6 <= rows; r += 6)
            tile<6>(a + r * lda, lda, b + at, columns, k, c + r * columns + at, columns, adds);
        for (; r + 4 <= rows; r += 4)
            tile<4>(a + r * lda, lda, b + at, columns, k, c + r * columns + at, columns, adds);
        for (; r + 2 <= rows; r += 2)
            tile<2>(a + r * lda, lda, b + at, columns, k, c + r * columns + at, columns, adds);
        if (r < rows)
            tile<1>(a + r * lda, lda, b + at, columns, k, c + r * columns + at, columns, adds);
    }
}

}  // namespace elchat
