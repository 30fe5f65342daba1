// y = x · Wᵀ for weights in fp32, int8 and int4, kept in panels of 32 outputs.
//
// A panel holds, for each input in turn, the weights of its 32 outputs side by side: one straight
// walk through memory, and sums that never have to be added across lanes. A block of rows of x
// shares the walk. Each (row, output) has its own sum and its own order of addition: the result
// does not depend on how many rows are computed together, which is what makes a reply the same
// alone and in a batch.
//
// Integer weights meet activations of 8 bits, one scale for each 64 inputs of a row
// (`activations.h`): within them the sum is of integers, exact.
#pragma once

#include "activations.h"

namespace elchat {

enum Kind : int32_t { kFp32 = 0, kInt8 = 1, kInt4 = 2 };
constexpr int kPanel = 2 * kLanes;
constexpr int kFetchAheadBytes = 2304;

struct Matrix {
    // fp32: [panels, k, 32] float; int8: [panels, k / 4, 32, 4] bytes, weight + 128;
    // int4: [panels, k / 8, 32, 4] bytes, inputs 0-3 low and 4-7 high, weight + 8.
    const void *weights;
    const void *scales;     // int8: [panels, 32] float; int4: [panels, k / 32, 32] half
    const float *bias;      // [panels * 32] or null
    int32_t kind, n, k;
};

// Rows of x as the matrix wants them: fp32 [m, k], or 8 bits.
struct Operand {
    const float *f32;
    Activations i8;
};

// Row `index` of an fp32 or int8 matrix: an embedding.
inline void copy_row(const Matrix &w, int index, float *out) {
    const size_t start = size_t(index / kPanel) * w.k * kPanel;
    const int lane = index % kPanel;
    if (w.kind == kFp32) {
        const float *p = static_cast<const float *>(w.weights) + start + lane;
        for (int i = 0; i < w.k; i++) out[i] = p[i * kPanel];
        return;
    }
    const uint8_t *p = static_cast<const uint8_t *>(w.weights) + start + lane * 4;
    const float scale = static_cast<const float *>(w.scales)[index];
    for (int i = 0; i < w.k; i++)
        out[i] = static_cast<float>(p[i / 4 * kPanel * 4 + i % 4] - 128) * scale;
}

// One core asks for memory this far ahead: half as much again as it reads without.
// With more rows than these the weights are read again from the cache, and asking costs.
constexpr int kFewRows = 4;
inline void fetch(const void *p) { __builtin_prefetch(static_cast<const char *>(p) + kFetchAheadBytes); }

// The sums of MR rows and H times 16 outputs, the first of them at lane `lane` of a panel.
template <int MR, int H> struct Sums {
    F at[MR][H];
};

template <int MR, int H>
[[gnu::noinline]] Sums<MR, H> sums_fp32(const Matrix &w, const Operand &x, int panel, int lane, int m) {
    const float *p = static_cast<const float *>(w.weights) + size_t(panel) * w.k * kPanel + lane;
    const float *a = x.f32 + size_t(m) * w.k;
    Sums<MR, H> out;
    for (auto &row : out.at)
        for (F &f : row) f = zeros();
    for (int i = 0; i < w.k; i++, p += kPanel) {
        fetch(p);
        if (H == 2) fetch(p + kLanes);
        F wide[H];
        for (int h = 0; h < H; h++) wide[h] = load(p + h * kLanes);
        for (int r = 0; r < MR; r++)
            for (int h = 0; h < H; h++)
                out.at[r][h] = fma(out.at[r][h], wide[h], a[size_t(r) * w.k + i]);
    }
    return out;
}

template <int MR, int H, int STEPS>
inline void add_group_int8(const uint8_t *p, const int8_t *a, I (&acc)[MR][H]) {
#pragma GCC unroll 16
    for (int s = 0; s < STEPS; s++) {
        W wide[H];
        for (int h = 0; h < H; h++) {
            if (MR <= kFewRows) fetch(p + s * 128 + h * 64);
            wide[h] = load_bytes(p + s * 128 + h * 64);
        }
        for (int r = 0; r < MR; r++) {
            const X four_r = four(a + (s * MR + r) * 4);
            for (int h = 0; h < H; h++) acc[r][h] = dot(acc[r][h], wide[h], four_r);
        }
    }
}

template <int MR, int H>
[[gnu::noinline]] Sums<MR, H> sums_int8(const Matrix &w, const Operand &x, int panel, int lane, int m) {
    const uint8_t *p =
        static_cast<const uint8_t *>(w.weights) + size_t(panel) * w.k * kPanel + lane * 4;
    const int8_t *a = x.i8.record(m, 0);
    Sums<MR, H> out;
    for (auto &row : out.at)
        for (F &f : row) f = zeros();
    for (int left = w.k; left > 0; left -= kActivationGroup) {
        const int8_t *scales = a + MR * kActivationGroup, *starts = scales + MR * 4;
        I acc[MR][H];
        for (int r = 0; r < MR; r++)
            for (int h = 0; h < H; h++) acc[r][h] = start(read<int32_t>(starts + r * 4));
        if (left >= kActivationGroup)
            add_group_int8<MR, H, 16>(p, a, acc);
        else
            add_group_int8<MR, H, 8>(p, a, acc);
        for (int r = 0; r < MR; r++)
            for (int h = 0; h < H; h++)
                out.at[r][h] = fma(out.at[r][h], to_float(acc[r][h]), read<float>(scales + r * 4));
        p += kActivationGroup * kPanel;
        a += MR * kRecordBytes;
    }
    const float *scales = static_cast<const float *>(w.scales) + size_t(panel) * kPanel + lane;
    for (int h = 0; h < H; h++) {
        const F scale = load(scales + h * kLanes);
        for (int r = 0; r < MR; r++) out.at[r][h] = mul(out.at[r][h], scale);
    }
    return out;
}

// Half a group of activations shares a scale of weights.
template <int MR, int H>
inline void add_half_int4(const uint8_t *p, const uint16_t *weight_scales, const int8_t *a,
                          const int8_t *starts, const int8_t *scales, Sums<MR, H> &out) {
    I acc[MR][H];
    for (int r = 0; r < MR; r++)
        for (int h = 0; h < H; h++) acc[r][h] = start(read<int32_t>(starts + r * 4));
    if (MR <= kFewRows) fetch(weight_scales);
#pragma GCC unroll 4
    for (int s = 0; s < 4; s++) {
        W first[H], second[H];
        for (int h = 0; h < H; h++) {
            if (MR <= kFewRows) fetch(p + s * 128 + h * 64);
            split_nibbles(load_bytes(p + s * 128 + h * 64), first[h], second[h]);
        }
        for (int r = 0; r < MR; r++) {
            const X one = four(a + (2 * s * MR + r) * 4), two = four(a + ((2 * s + 1) * MR + r) * 4);
            for (int h = 0; h < H; h++)
                acc[r][h] = dot(dot(acc[r][h], first[h], one), second[h], two);
        }
    }
    for (int h = 0; h < H; h++) {
        const F scale = load_halves(weight_scales + h * kLanes);
        for (int r = 0; r < MR; r++)
            out.at[r][h] =
                fma(out.at[r][h], mul(to_float(acc[r][h]), scale), read<float>(scales + r * 4));
    }
}

template <int MR, int H>
[[gnu::noinline]] Sums<MR, H> sums_int4(const Matrix &w, const Operand &x, int panel, int lane, int m) {
    const uint8_t *p =
        static_cast<const uint8_t *>(w.weights) + size_t(panel) * w.k * kLanes + lane * 4;
    const uint16_t *weight_scales = static_cast<const uint16_t *>(w.scales) +
                                    size_t(panel) * (w.k / kWeightGroup) * kPanel + lane;
    const int8_t *a = x.i8.record(m, 0);
    Sums<MR, H> out;
    for (auto &row : out.at)
        for (F &f : row) f = zeros();
    for (int left = w.k; left > 0; left -= kActivationGroup) {
        const int8_t *scales = a + MR * kActivationGroup, *starts = scales + MR * 4;
        for (int half = 0; half < 2 && half * kWeightGroup < left; half++) {
            add_half_int4(p, weight_scales, a + half * MR * kWeightGroup, starts + half * MR * 4,
                          scales, out);
            p += kWeightGroup * kLanes;
            weight_scales += kPanel;
        }
        a += MR * kRecordBytes;
    }
    return out;
}

template <int MR, int H>
inline Sums<MR, H> sums(const Matrix &w, const Operand &x, int panel, int lane, int m) {
    if (w.kind == kInt8) return sums_int8<MR, H>(w, x, panel, lane, m);
    if (w.kind == kInt4) return sums_int4<MR, H>(w, x, panel, lane, m);
    return sums_fp32<MR, H>(w, x, panel, lane, m);
}

// MR rows of one panel; calls write(m, panel, low half, high half).
template <int MR, class Write>
inline void block(const Matrix &w, const Operand &x, int panel, int m, Write &&write) {
    Sums<MR, 2> both;
    if constexpr (kHalves == 2) {
        both = sums<MR, 2>(w, x, panel, 0, m);
    } else {
        const Sums<MR, 1> a = sums<MR, 1>(w, x, panel, 0, m);
        const Sums<MR, 1> b = sums<MR, 1>(w, x, panel, kLanes, m);
        for (int r = 0; r < MR; r++) both.at[r][0] = a.at[r][0], both.at[r][1] = b.at[r][0];
    }
    if (w.bias) {
        const float *bias = w.bias + size_t(panel) * kPanel;
        for (auto &row : both.at)
            for (int h = 0; h < 2; h++) row[h] = add(row[h], load(bias + h * kLanes));
    }
    for (int r = 0; r < MR; r++) write(m + r, panel, both.at[r][0], both.at[r][1]);
}

inline size_t panel_bytes(const Matrix &w) {
    return size_t(w.k) * kPanel * (w.kind == kFp32 ? 8 : w.kind == kInt8 ? 2 : 1) / 2;
}

// Rows `from`..`to` of `count` use one panel; the same share of the next one comes nearer.
inline void fetch_next(const Matrix &w, int panel, int from, int to, int count) {
    const size_t bytes = panel_bytes(w);
    const char *next = static_cast<const char *>(w.weights) + (panel + 1) * bytes;
    for (size_t at = bytes * from / count; at < bytes * to / count; at += 64)
        __builtin_prefetch(next + at, 0, 2);
}

// Panels begin..end-1 of rows from..to-1.
template <class Write>
inline void linear(const Matrix &w, const Operand &x, int from, int to, int begin, int end,
                   Write &&write) {
    const int most = w.kind == kFp32 ? kRowsFp32 : kRowsInt;
    for (int panel = begin; panel < end; panel++)
        for (int m = from, rows; m < to; m += rows) {
            rows = to - m < most ? to - m : most;
            if (to - from > most) fetch_next(w, panel, m - from, m + rows - from, to - from);
            switch (rows) {
                case 6: block<6>(w, x, panel, m, write); break;
                case 5: block<5>(w, x, panel, m, write); break;
                case 4: block<4>(w, x, panel, m, write); break;
                case 3: block<3>(w, x, panel, m, write); break;
                case 2: block<2>(w, x, panel, m, write); break;
                default: block<1>(w, x, panel, m, write);
            }
        }
}

}  // namespace elchat
