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

// `n` (32 or 64) inputs of row m from x on. What is not a number stays so, through its scale.
inline void quantize_group(const Activations &to, int m, int group, const float *x, int n,
                           bool is_int8) {
    f8 top = all8(0.0f);
    i8x is_strange = {};
    for (int i = 0; i < n; i += 8) {
        const f8 v = load8(x + i);
        top = larger(top, larger(v, -v));
        is_strange |= v != v;
    }
    const float largest = max8(top);
    const bool is_plain = !any8(is_strange) && std::isfinite(largest);
    const float inverse = is_plain && largest > 0.0f ? 127.0f / largest : 0.0f;
    const float scale = is_plain ? largest / 127.0f : NAN;

    const int band = m / kBand * kBand, rows = to.rows_of(band), row = (m - band) * 4;
    int8_t *record = to.record(band, group), *bytes = record + row;
    int32_t starts[2] = {0, 0};
    for (int half = 0; half * kWeightGroup < n; half++) {
        i8x sums = {};
        for (int i = 0; i < kWeightGroup; i += 8, bytes += 8 * rows) {
            const i8x v = nearest(load8(x + half * kWeightGroup + i) * inverse);
            sums += v;
            int8_t eight[8];
            store_bytes(eight, v);
            std::memcpy(bytes, eight, 4);
            std::memcpy(bytes + 4 * rows, eight + 4, 4);
        }
        starts[half] = sum8(sums);
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
