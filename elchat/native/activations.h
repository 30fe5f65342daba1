// Activations of 8 bits, laid out in the order in which the integer kernels read them.
//
// Rows go in bands of kBand, the last one with what is left. For every group of 64 inputs a band
// has one record: for each four inputs in turn those of every row, then a scale for each row, then
// what its integer sums start at, [2][rows]. Weights are stored unsigned, `zero` above their value;
// the start takes off beforehand what that adds to a sum.
#pragma once

#include "lanes.h"

namespace elchat {

constexpr int kBand = kRowsInt;
constexpr int kActivationGroup = 64, kWeightGroup = 32;  // inputs that share a scale
constexpr int kRecordBytes = kActivationGroup + 4 + 2 * 4;  // of one row

inline int groups_of(int k) { return (k + kActivationGroup - 1) / kActivationGroup; }

struct Activations {
    int8_t *records;
    int count, groups;  // rows in all; groups of a row

    int rows_of(int band) const { return count - band < kBand ? count - band : kBand; }
    int8_t *record(int band, int group) const {
        return records + (size_t(band) * groups + size_t(group) * rows_of(band)) * kRecordBytes;
    }
};

template <class T> inline T read(const int8_t *at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// Nearest integer, ties to even, for |v| below 2^22.
inline i8x nearest(f8 v) {
    const f8 shifted = v + 12582912.0f;  // 1.5 * 2^23: the integer is left in the low bits
    return (i8x)shifted - (i8x)all8(12582912.0f);
}

// The largest magnitude of n inputs; false if one of them is not a number.
inline bool find_largest(const float *x, int n, float &largest) {
#if defined(ELCHAT_VNNI)
    __m512 top = _mm512_setzero_ps();
    __mmask16 is_strange = 0;
    for (int i = 0; i < n; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i);
        top = _mm512_max_ps(top, _mm512_abs_ps(v));
        is_strange |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    }
    largest = _mm512_reduce_max_ps(top);
    return is_strange == 0;
#else
    f8 top = all8(0.0f);
    i8x is_strange = {};
    for (int i = 0; i < n; i += 8) {
        const f8 v = load8(x + i);
        top = larger(top, larger(v, -v));
        is_strange |= v != v;
    }
    largest = max8(top);
    return !any8(is_strange);
#endif
}

// kWeightGroup inputs to bytes, four of them every `stride`; returns their sum.
inline int32_t round_inputs(const float *x, float inverse, int8_t *bytes, int stride) {
#if defined(ELCHAT_VNNI)
    const __m512 by = _mm512_set1_ps(inverse);
    __m512i sums = _mm512_setzero_si512();
    for (int i = 0; i < kWeightGroup; i += 16, bytes += 4 * stride) {
        const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), by));
        sums = _mm512_add_epi32(sums, v);
        alignas(16) int8_t sixteen[16];
        _mm_store_si128(reinterpret_cast<__m128i *>(sixteen), _mm512_cvtepi32_epi8(v));
        for (int j = 0; j < 4; j++) std::memcpy(bytes + j * stride, sixteen + 4 * j, 4);
    }
    return _mm512_reduce_add_epi32(sums);
#else
    i8x sums = {};
    for (int i = 0; i < kWeightGroup; i += 8, bytes += 2 * stride) {
        const i8x v = nearest(load8(x + i) * inverse);
        sums += v;
        int8_t eight[8];
        store_bytes(eight, v);
        std::memcpy(bytes, eight, 4);
        std::memcpy(bytes + stride, eight + 4, 4);
    }
    return sum8(sums);
#endif
}

// `n` (32 or 64) inputs of row m from x on. What is not a number stays so, through its scale.
inline void quantize_group(const Activations &to, int m, int group, const float *x, int n,
                           bool is_int8) {
    float largest;
    const bool is_plain = find_largest(x, n, largest) && std::isfinite(largest);
    const float inverse = is_plain && largest > 0.0f ? 127.0f / largest : 0.0f;
    const float scale = is_plain ? largest / 127.0f : NAN;

    const int band = m / kBand * kBand, rows = to.rows_of(band), row = (m - band) * 4;
    int8_t *record = to.record(band, group);
    int32_t starts[2] = {0, 0};
    for (int half = 0; half * kWeightGroup < n; half++) {
        const int at = half * kWeightGroup;
        starts[half] = round_inputs(x + at, inverse, record + row + at * rows, 4 * rows);
    }
    if (is_int8) starts[0] += starts[1];
    int8_t *after = record + rows * kActivationGroup + row;
    std::memcpy(after, &scale, 4);
    for (int half = 0; half < 2; half++) {
        const int32_t start = starts[half] * (is_int8 ? -128 : -8);
        std::memcpy(after + (half + 1) * rows * 4, &start, 4);
    }
}

}  // namespace elchat
