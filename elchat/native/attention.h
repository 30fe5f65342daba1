// Attention of a few queries to one sequence of cached keys and values.
//
// Keys are kept sixteen positions side by side, values position by position, so that neither needs
// sums across lanes. Queries that look at the same keys (the heads of a group, neighbouring rows)
// share the walk; each has its own sums in the order of the positions, whoever is beside it.
#pragma once

#include "lanes.h"

namespace elchat {

constexpr int kKeyBlock = kLanes;  // positions side by side
constexpr int kMaxQueries = 6;

inline int padded(int n) { return (n + kKeyBlock - 1) / kKeyBlock * kKeyBlock; }

struct Query {
    const float *q;     // [head_dim], rotated; bfloat16 in the same place for such a cache
    float *out;         // [head_dim]
    int length;         // positions it may look at
};

}  // namespace elchat

#include "attention_bf16.h"

namespace elchat {

inline void write_query(const float *, float *, int) {}  // as it is

// keys: [positions / 16, d, 16].
inline void write_key(float *keys, const float *k, int position, int d) {
    float *at = keys + size_t(position / kKeyBlock) * d * kKeyBlock + position % kKeyBlock;
    for (int i = 0; i < d; i++) at[i * kKeyBlock] = k[i];
}

// values: [positions, d].
inline void write_value(float *values, const float *v, int position, int d) {
    std::memcpy(values + size_t(position) * d, v, sizeof(float) * d);
}

// scores[r, s] = scale * q_r . k_s for the first `end` positions.
template <int R>
inline void score(const Query *queries, const float *keys, int end, int d, float scale,
                  float *scores, int stride) {
    for (int s = 0; s < end; s += kKeyBlock, keys += size_t(d) * kKeyBlock) {
        F sums[R];
        for (F &sum : sums) sum = zeros();
        for (int i = 0; i < d; i++) {
            const F key = load(keys + i * kKeyBlock);
            for (int r = 0; r < R; r++) sums[r] = fma(sums[r], key, queries[r].q[i]);
        }
        for (int r = 0; r < R; r++) store(scores + size_t(r) * stride + s, mul(sums[r], all(scale)));
    }
}

// Exponentials of `length` scores, zeros up to `end`; returns one over their sum.
inline float exponentiate(float *scores, int length, int end) {
    for (int s = length; s < end; s++) scores[s] = -INFINITY;
    f8 tops = all8(-INFINITY);
    for (int s = 0; s < end; s += 8) tops = larger(tops, load8(scores + s));
    const F top = all(max8(tops));
    F total = zeros();
    for (int s = 0; s < end; s += kLanes) {
        const F e = exp(sub(load(scores + s), top));
        store(scores + s, e);
        total = add(total, e);
    }
    float sums[kLanes];
    store(sums, total);
    return 1.0f / sum8(load8(sums) + load8(sums + 8));
}

// out_r[from .. from + 8 J] = sum over positions of scores[r, s] * values[s], times inverse_r.
template <int R, int J>
inline void weigh(const Query *queries, const float *values, int end, int d, int from,
                  const float *scores, int stride, const float *inverses) {
    f8 sums[R][J];
    for (auto &row : sums)
        for (f8 &sum : row) sum = all8(0.0f);
    for (int s = 0; s < end; s++) {
        const float *v = values + size_t(s) * d + from;
        f8 parts[J];
        for (int j = 0; j < J; j++) parts[j] = load8(v + j * 8);
        for (int r = 0; r < R; r++) {
            const f8 p = all8(scores[size_t(r) * stride + s]);
            for (int j = 0; j < J; j++) sums[r][j] = fma8(sums[r][j], p, parts[j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++) store8(queries[r].out + from + j * 8, sums[r][j] * inverses[r]);
}

template <int R>
inline void weigh_few(const Query *queries, const float *values, int end, int d,
                      const float *scores, int stride, const float *inverses) {
    int from = 0;
    for (; from + 32 <= d; from += 32)
        weigh<R, 4>(queries, values, end, d, from, scores, stride, inverses);
    for (; from < d; from += 8)
        weigh<R, 1>(queries, values, end, d, from, scores, stride, inverses);
}

template <int R>
inline void weigh_all(const Query *queries, const float *values, int end, int d, float *scores,
                      int stride, const float *inverses) {
    constexpr int kFirst = R < 3 ? R : 3;
    weigh_few<kFirst>(queries, values, end, d, scores, stride, inverses);
    if constexpr (R > 3)
        weigh_few<R - 3>(queries + 3, values, end, d, scores + size_t(3) * stride, stride,
                         inverses + 3);
}

// R queries of one slot and one key head. scores: [R, stride], stride >= padded(longest).
template <int R, class Cached>
inline void attend(const Query *queries, const Cached *keys, const Cached *values, int d,
                   float *scores, int stride) {
    int longest = 0;
    for (int r = 0; r < R; r++) longest = queries[r].length > longest ? queries[r].length : longest;
    const int end = padded(longest);
    float inverses[R];
    score<R>(queries, keys, end, d, 1.0f / std::sqrt(static_cast<float>(d)), scores, stride);
    for (int r = 0; r < R; r++)
        inverses[r] = exponentiate(scores + size_t(r) * stride, queries[r].length, end);
    weigh_all<R>(queries, values, longest, d, scores, stride, inverses);
}

template <class Cached>
inline void attend(const Query *queries, int count, const Cached *keys, const Cached *values, int d,
                   float *scores, int stride) {
    switch (count) {
        case 6: return attend<6>(queries, keys, values, d, scores, stride);
        case 5: return attend<5>(queries, keys, values, d, scores, stride);
        case 4: return attend<4>(queries, keys, values, d, scores, stride);
        case 3: return attend<3>(queries, keys, values, d, scores, stride);
        case 2: return attend<2>(queries, keys, values, d, scores, stride);
        default: return attend<1>(queries, keys, values, d, scores, stride);
    }
}

}  // namespace elchat
