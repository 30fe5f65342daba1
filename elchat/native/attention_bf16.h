// The pieces of attention that touch cached keys and values, for a cache in bfloat16.
//
// Half the memory, and instructions that take two products of each lane at once: keys lie in pairs
// of dimensions, values in pairs of positions. Queries and probabilities are rounded to bfloat16
// too, sums are fp32. Only where the processor has those instructions, and only beside weights in
// 8 or 4 bits: fp32 keeps its tokens.
#pragma once

#include "lanes.h"

#if defined(ELCHAT_VNNI) && defined(__AVX512BF16__)
#define ELCHAT_BF16 1
#endif

namespace elchat {

constexpr bool kHasBf16 =
#if defined(ELCHAT_BF16)
    true;
#else
    false;
#endif

#if defined(ELCHAT_BF16)

inline __m512bh as_bf16(__m512i v) { return (__m512bh)v; }
inline __m512bh pair(const void *p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return as_bf16(_mm512_set1_epi32(bits));
}

// n floats (a multiple of 16) to bfloat16, possibly in place.
inline void narrow(const float *from, int n, void *to) {
    for (int i = 0; i < n; i += kLanes)
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(static_cast<uint16_t *>(to) + i),
                            (__m256i)_mm512_cvtneps_pbh(load(from + i)));
}

inline void write_query(const uint16_t *, float *q, int d) { narrow(q, d, q); }

// keys: [positions / 16, d / 2, 16, 2].
inline void write_key(uint16_t *keys, float *k, int position, int d) {
    narrow(k, d, k);
    const char *pairs = reinterpret_cast<const char *>(k);
    uint16_t *at = keys + size_t(position / kLanes) * d * kLanes + position % kLanes * 2;
    for (int i = 0; i < d / 2; i++) std::memcpy(at + i * 2 * kLanes, pairs + i * 4, 4);
}

// values: [positions / 2, d, 2].
inline void write_value(uint16_t *values, float *v, int position, int d) {
    narrow(v, d, v);
    const char *bytes = reinterpret_cast<const char *>(v);
    uint16_t *at = values + size_t(position / 2) * 2 * d + position % 2;
    for (int i = 0; i < d; i++) std::memcpy(at + i * 2, bytes + i * 2, 2);
}

template <int R>
inline void score(const Query *queries, const uint16_t *keys, int end, int d, float scale,
                  float *scores, int stride) {
    for (int s = 0; s < end; s += kKeyBlock, keys += size_t(d) * kKeyBlock) {
        F sums[R];
        for (F &sum : sums) sum = zeros();
        for (int i = 0; i < d / 2; i++) {
            const __m512bh key = as_bf16(_mm512_loadu_si512(keys + i * 2 * kKeyBlock));
            for (int r = 0; r < R; r++) sums[r] = _mm512_dpbf16_ps(sums[r], key, pair(queries[r].q + i));
        }
        for (int r = 0; r < R; r++) store(scores + size_t(r) * stride + s, mul(sums[r], all(scale)));
    }
}

// Sixteen J dimensions from `from` on.
template <int R, int J>
inline void weigh(const Query *queries, const uint16_t *values, int end, int d, int from,
                  const float *scores, int stride, const float *inverses) {
    F sums[R][J];
    for (auto &row : sums)
        for (F &sum : row) sum = zeros();
    for (int s = 0; s < end; s += 2) {
        const uint16_t *v = values + size_t(s) * d + from * 2;
        // The second of the last pair may hold what another sequence left there.
        const __m512i kept = _mm512_set1_epi32(s + 1 < end ? -1 : 0xFFFF);
        __m512bh parts[J];
        for (int j = 0; j < J; j++)
            parts[j] = as_bf16(_mm512_and_si512(_mm512_loadu_si512(v + j * 2 * kLanes), kept));
        for (int r = 0; r < R; r++) {
            const __m512bh p = pair(scores + size_t(r) * stride + s / 2);
            for (int j = 0; j < J; j++) sums[r][j] = _mm512_dpbf16_ps(sums[r][j], parts[j], p);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < J; j++)
            store(queries[r].out + from + j * kLanes, mul(sums[r][j], all(inverses[r])));
}

template <int R>
inline void weigh_all(const Query *queries, const uint16_t *values, int end, int d, float *scores,
                      int stride, const float *inverses) {
    for (int r = 0; r < R; r++) {
        float *row = scores + size_t(r) * stride;
        narrow(row, padded(end), row);
    }
    int from = 0;
    for (; from + 2 * kLanes <= d; from += 2 * kLanes)
        weigh<R, 2>(queries, values, end, d, from, scores, stride, inverses);
    for (; from < d; from += kLanes)
        weigh<R, 1>(queries, values, end, d, from, scores, stride, inverses);
}

#endif

}  // namespace elchat
