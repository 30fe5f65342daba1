// y = x · Wᵀ for weights in fp32, int8 and int4, kept in panels of 32 outputs.
//
// A panel holds, for each input in turn, the weights of its 32 outputs side by side: one straight
// walk through memory, and sums that never have to be added across lanes. A block of rows of x
// shares the walk. Each (row, output) has its own sum and its own order of addition: the result
// does not depend on how many rows are computed together, which is what makes a reply the same
// alone and in a batch.
//
// Integer weights meet activations of 8 bits, one scale for each 64 inputs of a row: within them
// the sum is of integers, exact. Weights are stored unsigned, `zero` above their value; what that
// adds to a sum is taken off before it starts.
#pragma once

#include "lanes.h"

namespace elchat {

enum Kind : int32_t { kFp32 = 0, kInt8 = 1, kInt4 = 2 };
constexpr int kPanel = 2 * kLanes;
constexpr int kActivationGroup = 64, kWeightGroup = 32;  // inputs that share a scale
constexpr int kFetchAheadBytes = 2304;

struct Matrix {
    // fp32: [panels, k, 32] float; int8: [panels, k / 4, 32, 4] bytes, weight + 128;
    // int4: [panels, k / 8, 32, 4] bytes, inputs 0-3 low and 4-7 high, weight + 8.
    const void *weights;
    const void *scales;     // int8: [panels, 32] float; int4: [panels, k / 32, 32] half
    const float *bias;      // [panels * 32] or null
    int32_t kind, n, k;
};

inline int groups_of(int k) { return (k + kActivationGroup - 1) / kActivationGroup; }

// Rows of x as the matrix wants them.
struct Operand {
    const float *f32;       // [m, k]
    int8_t *i8;             // [m, k]
    float *scale;           // [m, groups]
    int32_t *start;         // [m, groups], int4: [m, k / 32]: -zero times the sum of the inputs
};

// What is not a number stays so, through its scale.
inline void quantize_group(const float *x, int n, float *scale, int8_t *out) {
    f8 top = all8(0.0f);
    for (int i = 0; i < n; i += 8) {
        const f8 v = load8(x + i);
        top = larger(top, larger(v, -v));
    }
    const float largest = max8(top);
    const bool is_plain = largest > 0.0f && std::isfinite(largest);
    const float inverse = is_plain ? 127.0f / largest : 0.0f;
    *scale = is_plain || largest == 0.0f ? largest / 127.0f : NAN;
    for (int i = 0; i < n; i += 8) {
        f8 v = load8(x + i) * inverse;
        v += v < 0.0f ? all8(-0.5f) : all8(0.5f);
        store_bytes(out + i, __builtin_convertvector(v, i8x));
    }
}

inline void quantize_row(const Matrix &w, const float *x, const Operand &to, int m) {
    const int groups = groups_of(w.k);
    int8_t *out = to.i8 + size_t(m) * w.k;
    for (int g = 0; g < groups; g++) {
        const int from = g * kActivationGroup;
        const int n = w.k - from < kActivationGroup ? w.k - from : kActivationGroup;
        quantize_group(x + from, n, to.scale + size_t(m) * groups + g, out + from);
    }
    const int width = w.kind == kInt8 ? kActivationGroup : kWeightGroup;
    const int zero = w.kind == kInt8 ? 128 : 8;
    int32_t *start = to.start + size_t(m) * ((w.k + width - 1) / width);
    for (int from = 0; from < w.k; from += width) {
        int32_t sum = 0;
        for (int i = from; i < w.k && i < from + width; i++) sum += out[i];
        *start++ = -zero * sum;
    }
}

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
inline void add_group_int8(const uint8_t *p, const int8_t *a, int k, I (&acc)[MR][H]) {
#pragma GCC unroll 16
    for (int s = 0; s < STEPS; s++) {
        W wide[H];
        for (int h = 0; h < H; h++) {
            fetch(p + s * 128 + h * 64);
            wide[h] = load_bytes(p + s * 128 + h * 64);
        }
        for (int r = 0; r < MR; r++) {
            const X four_r = four(a + size_t(r) * k + s * 4);
            for (int h = 0; h < H; h++) acc[r][h] = dot(acc[r][h], wide[h], four_r);
        }
    }
}

template <int MR, int H>
[[gnu::noinline]] Sums<MR, H> sums_int8(const Matrix &w, const Operand &x, int panel, int lane, int m) {
    const int k = w.k, groups = groups_of(k);
    const uint8_t *p =
        static_cast<const uint8_t *>(w.weights) + size_t(panel) * k * kPanel + lane * 4;
    const int8_t *a = x.i8 + size_t(m) * k;
    Sums<MR, H> out;
    for (auto &row : out.at)
        for (F &f : row) f = zeros();
    for (int g = 0; g < groups; g++, p += kActivationGroup * kPanel, a += kActivationGroup) {
        I acc[MR][H];
        for (int r = 0; r < MR; r++)
            for (int h = 0; h < H; h++) acc[r][h] = start(x.start[size_t(m + r) * groups + g]);
        if (k - g * kActivationGroup >= kActivationGroup)
            add_group_int8<MR, H, 16>(p, a, k, acc);
        else
            add_group_int8<MR, H, 8>(p, a, k, acc);
        for (int r = 0; r < MR; r++) {
            const float scale = x.scale[size_t(m + r) * groups + g];
            for (int h = 0; h < H; h++)
                out.at[r][h] = fma(out.at[r][h], to_float(acc[r][h]), scale);
        }
    }
    const float *scales = static_cast<const float *>(w.scales) + size_t(panel) * kPanel + lane;
    for (int h = 0; h < H; h++) {
        const F scale = load(scales + h * kLanes);
        for (int r = 0; r < MR; r++) out.at[r][h] = mul(out.at[r][h], scale);
    }
    return out;
}

template <int MR, int H>
[[gnu::noinline]] Sums<MR, H> sums_int4(const Matrix &w, const Operand &x, int panel, int lane, int m) {
    const int k = w.k, groups = groups_of(k), count = k / kWeightGroup;
    const uint8_t *p =
        static_cast<const uint8_t *>(w.weights) + size_t(panel) * k * kLanes + lane * 4;
    const uint16_t *scales =
        static_cast<const uint16_t *>(w.scales) + size_t(panel) * count * kPanel + lane;
    const int8_t *a = x.i8 + size_t(m) * k;
    Sums<MR, H> out;
    for (auto &row : out.at)
        for (F &f : row) f = zeros();
    for (int g = 0; g < count; g++, a += kWeightGroup, scales += kPanel) {
        I acc[MR][H];
        for (int r = 0; r < MR; r++)
            for (int h = 0; h < H; h++) acc[r][h] = start(x.start[size_t(m + r) * count + g]);
        fetch(scales);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++, p += 128) {
            W first[H], second[H];
            for (int h = 0; h < H; h++) {
                fetch(p + h * 64);
                split_nibbles(load_bytes(p + h * 64), first[h], second[h]);
            }
            for (int r = 0; r < MR; r++) {
                const int8_t *at = a + size_t(r) * k + s * 8;
                const X one = four(at), two = four(at + 4);
                for (int h = 0; h < H; h++)
                    acc[r][h] = dot(dot(acc[r][h], first[h], one), second[h], two);
            }
        }
        for (int h = 0; h < H; h++) {
            const F scale = load_halves(scales + h * kLanes);
            for (int r = 0; r < MR; r++) {
                const float of_x = x.scale[size_t(m + r) * groups + g / 2];
                out.at[r][h] = fma(out.at[r][h], mul(to_float(acc[r][h]), scale), of_x);
            }
        }
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

// Panels begin..end-1 of rows from..to-1.
template <class Write>
inline void linear(const Matrix &w, const Operand &x, int from, int to, int begin, int end,
                   Write &&write) {
    const int most = w.kind == kFp32 ? kRowsFp32 : kRowsInt;
    for (int panel = begin; panel < end; panel++)
        for (int m = from, rows; m < to; m += rows) {
            rows = to - m < most ? to - m : most;
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
