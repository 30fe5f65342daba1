// What a training step on the CPU does between its big products: norms, rotations, attention,
// SwiGLU and the loss, each read and written once. Products of bfloat16 stay torch's.
//
// Legend: n tokens, c width, h query heads, kv key/value heads, d head width. Results do not depend
// on the number of threads: every output is summed by one of them, in one order.

#if defined(__AVX512BF16__) && defined(__AVX512VL__)

#include "train.h"
#include "train_int8.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

using namespace elchat;

namespace {

// Stretches of at most 64 tokens of one document, in order.
struct Block {
    int64_t start;
    int length, first;  // `first`: number of the document's first block
};

std::vector<Block> blocks_of(const int32_t *starts, int documents) {
    std::vector<Block> blocks;
    for (int s = 0; s < documents; s++) {
        const int first = static_cast<int>(blocks.size());
        for (int32_t at = starts[s]; at < starts[s + 1]; at += kBlock)
            blocks.push_back({at, std::min(kBlock, starts[s + 1] - at), first});
    }
    return blocks;
}

// out[i·64 + row] = elements 2i and 2i + 1 of the row: for products that sum over the width.
void pair_width(const bf16 *x, int64_t stride, int rows, int d, uint32_t *out) {
    std::memset(out, 0, sizeof(uint32_t) * kBlock * d / 2);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < d / 2; i++) std::memcpy(out + i * kBlock + r, x + r * stride + 2 * i, 4);
}

// out[i·d + column] = that column of rows 2i and 2i + 1: for products that sum over the rows.
void pair_tokens(const bf16 *x, int64_t stride, int rows, int d, uint32_t *out) {
    static const bf16 nothing[256] = {};
    for (int i = 0; i < kBlock / 2; i++)
        pair_rows(2 * i < rows ? x + 2 * i * stride : nothing,
                  2 * i + 1 < rows ? x + (2 * i + 1) * stride : nothing, d, out + i * d);
}

struct Attention {
    const bf16 *q, *k, *v;
    int h, kv, d;
    float scale;
    std::vector<Block> blocks;

    int64_t q_stride() const { return (int64_t)h * d; }
    int64_t kv_stride() const { return (int64_t)kv * d; }
    const bf16 *q_of(int block, int head) const {
        return q + blocks[block].start * q_stride() + head * d;
    }
    const bf16 *kv_of(const bf16 *x, int block, int head) const {
        return x + blocks[block].start * kv_stride() + head / (h / kv) * d;
    }
};

// One row of scores to probabilities; the first `valid` of 64 count. Returns their sum.
float softmax_row(const float *scores, int valid, float scale, float top, bf16 *out) {
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < kBlock; j += 16) {
        const int left = std::clamp(valid - j, 0, 16);
        const __mmask16 mask = static_cast<__mmask16>((1u << left) - 1);
        const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), _mm512_set1_ps(scale),
                                         _mm512_set1_ps(top));
        const __m512 p = _mm512_maskz_mov_ps(mask, exp16(x));
        sum = _mm512_add_ps(sum, p);
        store(out + j, p);
    }
    return _mm512_reduce_add_ps(sum);
}

float largest(const float *scores, int valid) {
    __m512 top = _mm512_set1_ps(-3e38f);
    for (int j = 0; j < valid; j += 16) {
        const __mmask16 mask = static_cast<__mmask16>((1u << std::min(valid - j, 16)) - 1);
        top = _mm512_mask_max_ps(top, mask, top, _mm512_loadu_ps(scores + j));
    }
    return _mm512_reduce_max_ps(top);
}

// One block of queries of one head against its document's past. Source: FlashAttention
// (arXiv 2205.14135), the running maximum and sum.
void attend_block(const Attention &a, const uint32_t *keys, const uint32_t *values, int block,
                  int head, bf16 *out, float *lse) {
    alignas(64) float scores[kBlock * kBlock], y[kBlock * 128];
    alignas(64) bf16 p[kBlock * kBlock];
    float top[kBlock], sum[kBlock];
    const Block &queries = a.blocks[block];
    const int rows = queries.length, d = a.d, size = kBlock / 2 * d, kv_head = head / (a.h / a.kv);
    std::fill(top, top + kBlock, -3e38f);
    std::fill(sum, sum + kBlock, 0.0f);
    std::memset(y, 0, sizeof(float) * rows * d);
    for (int other = queries.first; other <= block; other++) {
        const int64_t at = ((int64_t)other * a.kv + kv_head) * size;
        product(rows, kBlock, a.q_of(block, head), a.q_stride(), keys + at, d / 2, scores, false);
        for (int r = 0; r < rows; r++) {
            const int valid = other == block ? r + 1 : kBlock;
            const float before = top[r];
            top[r] = std::max(before, a.scale * largest(scores + r * kBlock, valid));
            const float part =
                softmax_row(scores + r * kBlock, valid, a.scale, top[r], p + r * kBlock);
            const float keep = std::exp(before - top[r]);
            sum[r] = sum[r] * keep + part;
            if (keep != 1.0f)
                for (int j = 0; j < d; j += 16)
                    _mm512_storeu_ps(y + r * d + j, _mm512_mul_ps(_mm512_loadu_ps(y + r * d + j),
                                                                  _mm512_set1_ps(keep)));
        }
        product(rows, d, p, kBlock, values + at, (a.blocks[other].length + 1) / 2, y, true);
    }
    for (int r = 0; r < rows; r++) {
        lse[queries.start + r] = top[r] + std::log(sum[r]);
        for (int j = 0; j < d; j += 16)
            store(out + r * a.q_stride() + j, _mm512_mul_ps(_mm512_loadu_ps(y + r * d + j),
                                                            _mm512_set1_ps(1.0f / sum[r])));
    }
}

// Per query row: sum over the width of dy·y.
float dot(const bf16 *x, const bf16 *y, int d) {
    __m512 sum = _mm512_setzero_ps();
    for (int j = 0; j < d; j += 16) sum = _mm512_fmadd_ps(load(x + j), load(y + j), sum);
    return _mm512_reduce_add_ps(sum);
}

// Scores and their gradients, transposed (keys down, queries across), become probabilities and
// score gradients in bfloat16.
void gradients_of_scores(const float *scores, const float *dp, int keys, int rows, bool is_diagonal,
                         float scale, const float *lse, const float *delta, bf16 *p, bf16 *ds) {
    for (int key = 0; key < keys; key++)
        for (int j = 0; j < kBlock; j += 16) {
            const int skipped = is_diagonal ? std::clamp(key - j, 0, 16) : 0;
            const int left = std::clamp(rows - j, 0, 16);
            const __mmask16 mask = static_cast<__mmask16>(((1u << left) - 1) & ~((1u << skipped) - 1));
            const int64_t at = key * kBlock + j;
            const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + at), _mm512_set1_ps(scale),
                                             _mm512_loadu_ps(lse + j));
            const __m512 prob = _mm512_maskz_mov_ps(mask, exp16(x));
            const __m512 gap = _mm512_sub_ps(_mm512_loadu_ps(dp + at), _mm512_loadu_ps(delta + j));
            store(p + at, prob);
            store(ds + at, _mm512_maskz_mul_ps(mask, _mm512_mul_ps(prob, _mm512_set1_ps(scale)), gap));
        }
    const int even = (keys + 1) / 2 * 2;  // the products sum over pairs of keys
    std::memset(p + keys * kBlock, 0, sizeof(bf16) * kBlock * (even - keys));
    std::memset(ds + keys * kBlock, 0, sizeof(bf16) * kBlock * (even - keys));
}

void round_line(const float *line, int d, bf16 *out) {
    for (int i = 0; i < d; i += 16) store(out + i, _mm512_loadu_ps(line + i));
}

// Working memory of one head's backward pass over one document.
struct Scratch {
    std::vector<uint32_t> q_width, q_tokens, dy_width, dy_tokens;
    std::vector<float> dq, lse, delta;
    Scratch(int blocks, int d)
        : q_width((size_t)blocks * kBlock / 2 * d), q_tokens(q_width.size()),
          dy_width(q_width.size()), dy_tokens(q_width.size()),
          dq((size_t)blocks * kBlock * d, 0.0f), lse((size_t)blocks * kBlock, 0.0f),
          delta((size_t)blocks * kBlock, 0.0f) {}
};

void prepare(const Attention &a, const bf16 *y, const bf16 *dy, const float *lse, int first, int last,
             int head, Scratch &s) {
    const int size = kBlock / 2 * a.d;
    for (int b = first; b < last; b++) {
        const int64_t offset = a.blocks[b].start * a.q_stride() + head * a.d;
        const int rows = a.blocks[b].length;
        const size_t at = (size_t)(b - first) * size;
        pair_width(a.q + offset, a.q_stride(), rows, a.d, s.q_width.data() + at);
        pair_tokens(a.q + offset, a.q_stride(), rows, a.d, s.q_tokens.data() + at);
        pair_width(dy + offset, a.q_stride(), rows, a.d, s.dy_width.data() + at);
        pair_tokens(dy + offset, a.q_stride(), rows, a.d, s.dy_tokens.data() + at);
        for (int r = 0; r < rows; r++) {
            const size_t row = (size_t)(b - first) * kBlock + r;
            s.lse[row] = lse[a.blocks[b].start + r];
            s.delta[row] = dot(y + offset + r * a.q_stride(), dy + offset + r * a.q_stride(), a.d);
        }
    }
}

// One head over one document, or the half of its blocks of keys that belongs to a part.
struct Task {
    int first, last, head, part, parts;

    // 0 1 1 0 0 1 1 0...: early blocks meet more queries
    bool owns(int block) const { return parts == 1 || (block - first + 1) / 2 % 2 == part; }
};

// Gradients of a task; dk and dv are this query head's own, [n, d]. A half leaves its share of dq in
// `dq_half`, [tokens of the document, d].
void attend_back(const Attention &a, const bf16 *y, const bf16 *dy, const float *lse, const Task &task,
                 bf16 *dq, float *dq_half, float *dk, float *dv) {
    const int first = task.first, last = task.last, head = task.head;
    const int d = a.d, size = kBlock / 2 * d;
    Scratch s(last - first, d);
    prepare(a, y, dy, lse, first, last, head, s);
    alignas(64) float scores[kBlock * kBlock], dp[kBlock * kBlock], dk_here[kBlock * 128],
        dv_here[kBlock * 128];
    alignas(64) bf16 p[kBlock * kBlock], ds[kBlock * kBlock], turned[128 * kBlock];
    alignas(64) uint32_t ds_pairs[kBlock / 2 * kBlock];
    for (int b = first; b < last; b++) {
        if (!task.owns(b)) continue;
        const int keys = a.blocks[b].length, pairs = (keys + 1) / 2;
        const bf16 *k = a.kv_of(a.k, b, head), *v = a.kv_of(a.v, b, head);
        std::memset(turned, 0, sizeof turned);
        for (int j = 0; j < keys; j++)
            for (int i = 0; i < d; i++) turned[i * kBlock + j] = k[j * a.kv_stride() + i];
        for (int other = b; other < last; other++) {
            const int rows = a.blocks[other].length;
            const size_t at = (size_t)(other - first) * size, row = (size_t)(other - first) * kBlock;
            product(keys, kBlock, k, a.kv_stride(), s.q_width.data() + at, d / 2, scores, false);
            product(keys, kBlock, v, a.kv_stride(), s.dy_width.data() + at, d / 2, dp, false);
            gradients_of_scores(scores, dp, keys, rows, other == b, a.scale, s.lse.data() + row,
                                s.delta.data() + row, p, ds);
            for (int i = 0; i < pairs; i++)
                pair_rows(ds + 2 * i * kBlock, ds + (2 * i + 1) * kBlock, kBlock,
                          ds_pairs + i * kBlock);
            const int row_pairs = (rows + 1) / 2;
            product(keys, d, p, kBlock, s.dy_tokens.data() + at, row_pairs, dv_here, other > b);
            product(keys, d, ds, kBlock, s.q_tokens.data() + at, row_pairs, dk_here, other > b);
            product(d, kBlock, turned, kBlock, ds_pairs, pairs,
                    s.dq.data() + (size_t)(other - first) * kBlock * d, true);
        }
        const int64_t start = a.blocks[b].start;
        std::memcpy(dk + start * d, dk_here, sizeof(float) * keys * d);
        std::memcpy(dv + start * d, dv_here, sizeof(float) * keys * d);
    }
    alignas(64) float line[128];
    for (int b = first; b < last; b++)
        for (int r = 0; r < a.blocks[b].length; r++) {
            const float *turned_dq = s.dq.data() + (size_t)(b - first) * kBlock * d;
            for (int i = 0; i < d; i++) line[i] = turned_dq[i * kBlock + r];
            const int64_t token = a.blocks[b].start + r;
            if (dq_half)
                std::memcpy(dq_half + (token - a.blocks[first].start) * d, line, sizeof(float) * d);
            else
                round_line(line, d, dq + token * a.q_stride() + head * d);
        }
}

}  // namespace

extern "C" {

int elchat_train_version() { return 2; }

// y = x / rms(x) · weight; `inverse` keeps 1 / rms for the way back.
void elchat_norm(const float *x, const float *weight, bf16 *y, float *inverse, int64_t n, int c,
                 float eps) {
#pragma omp parallel for
    for (int64_t t = 0; t < n; t++) {
        const float *row = x + t * c;
        __m512 sum = _mm512_setzero_ps();
        for (int j = 0; j < c; j += 16) {
            const __m512 v = _mm512_loadu_ps(row + j);
            sum = _mm512_fmadd_ps(v, v, sum);
        }
        inverse[t] = 1.0f / std::sqrt(_mm512_reduce_add_ps(sum) / c + eps);
        for (int j = 0; j < c; j += 16)
            store(y + t * c + j, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(row + j),
                                                             _mm512_set1_ps(inverse[t])),
                                               _mm512_loadu_ps(weight + j)));
    }
}

// dx [n, c], and the weight's gradient in `parts` sums of consecutive tokens, [parts, c].
void elchat_norm_back(const float *x, const float *weight, const float *inverse, const bf16 *dy,
                      float *dx, float *dw, int64_t n, int c, int parts) {
#pragma omp parallel for
    for (int part = 0; part < parts; part++) {
        float *sums = dw + (int64_t)part * c;
        std::memset(sums, 0, sizeof(float) * c);
        for (int64_t t = n * part / parts; t < n * (part + 1) / parts; t++) {
            const __m512 inv = _mm512_set1_ps(inverse[t]);
            __m512 sum = _mm512_setzero_ps();
            for (int j = 0; j < c; j += 16) {
                const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(x + t * c + j), inv);
                const __m512 g = load(dy + t * c + j);
                sum = _mm512_fmadd_ps(_mm512_mul_ps(g, _mm512_loadu_ps(weight + j)), unit, sum);
                _mm512_storeu_ps(sums + j, _mm512_fmadd_ps(g, unit, _mm512_loadu_ps(sums + j)));
            }
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / c);
            for (int j = 0; j < c; j += 16) {
                const __m512 unit = _mm512_mul_ps(_mm512_loadu_ps(x + t * c + j), inv);
                const __m512 g = _mm512_mul_ps(load(dy + t * c + j), _mm512_loadu_ps(weight + j));
                _mm512_storeu_ps(dx + t * c + j,
                                 _mm512_mul_ps(_mm512_fnmadd_ps(unit, mean, g), inv));
            }
        }
    }
}

// silu(gate) · up
void elchat_swiglu(const bf16 *gate, const bf16 *up, bf16 *y, int64_t n) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 g = load(gate + i), one = _mm512_set1_ps(1.0f);
        const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
        store(y + i, _mm512_mul_ps(_mm512_div_ps(g, _mm512_add_ps(one, e)), load(up + i)));
    }
}

void elchat_swiglu_back(const bf16 *gate, const bf16 *up, const bf16 *dy, bf16 *dgate, bf16 *dup,
                        int64_t n) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 g = load(gate + i), d = load(dy + i), one = _mm512_set1_ps(1.0f);
        const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), g));
        const __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, e)), silu = _mm512_mul_ps(g, s);
        store(dup + i, _mm512_mul_ps(d, silu));
        // silu' = s·(1 + g·(1 - s)) = s + silu·(1 - s)
        const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, s), s);
        store(dgate + i, _mm512_mul_ps(_mm512_mul_ps(d, load(up + i)), slope));
    }
}

// Half-split rotation of [n, heads, d]; token t takes row t mod `table_rows` of cos and sin,
// [·, d] fp32 with the halves repeated. `sign` -1 turns back.
void elchat_rotate(const bf16 *x, bf16 *y, const float *cos, const float *sin, int64_t n, int heads,
                   int d, int64_t table_rows, float sign) {
    const int half = d / 2;
#pragma omp parallel for
    for (int64_t t = 0; t < n; t++) {
        const float *c = cos + t % table_rows * d, *s = sin + t % table_rows * d;
        for (int head = 0; head < heads; head++) {
            const int64_t at = (t * heads + head) * d;
            for (int j = 0; j < half; j += 16) {
                const __m512 first = load(x + at + j), second = load(x + at + half + j);
                const __m512 co = _mm512_loadu_ps(c + j);
                const __m512 si = _mm512_mul_ps(_mm512_loadu_ps(s + j), _mm512_set1_ps(sign));
                store(y + at + j, _mm512_fmsub_ps(first, co, _mm512_mul_ps(second, si)));
                store(y + at + half + j, _mm512_fmadd_ps(second, co, _mm512_mul_ps(first, si)));
            }
        }
    }
}

// Causal attention inside each document. q, out [n, h, d]; k, v [n, kv, d]; lse [h, n].
void elchat_attend(const bf16 *q, const bf16 *k, const bf16 *v, const int32_t *starts, int documents,
                   int64_t n, int h, int kv, int d, bf16 *out, float *lse) {
    const Attention a{q, k, v, h, kv, d, 1.0f / std::sqrt((float)d), blocks_of(starts, documents)};
    const int blocks = static_cast<int>(a.blocks.size()), size = kBlock / 2 * d;
    const std::unique_ptr<uint32_t[]> keys(new uint32_t[(size_t)blocks * kv * size]);
    const std::unique_ptr<uint32_t[]> values(new uint32_t[(size_t)blocks * kv * size]);
#pragma omp parallel for
    for (int i = 0; i < blocks * kv; i++) {
        const int block = i / kv, head = i % kv * (h / kv), rows = a.blocks[block].length;
        pair_width(a.kv_of(k, block, head), a.kv_stride(), rows, d, keys.get() + (size_t)i * size);
        pair_tokens(a.kv_of(v, block, head), a.kv_stride(), rows, d,
                    values.get() + (size_t)i * size);
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < blocks * h; i++) {
        const int block = blocks - 1 - i / h, head = i % h;  // long ones first
        attend_block(a, keys.get(), values.get(), block, head,
                     out + a.blocks[block].start * a.q_stride() + head * d, lse + head * n);
    }
}

// Gradients of the above; dq [n, h, d], dk and dv [n, kv, d].
void elchat_attend_back(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *y, const bf16 *dy,
                        const float *lse, const int32_t *starts, int documents, int64_t n, int h,
                        int kv, int d, bf16 *dq, bf16 *dk, bf16 *dv) {
    const Attention a{q, k, v, h, kv, d, 1.0f / std::sqrt((float)d), blocks_of(starts, documents)};
    const std::unique_ptr<float[]> parts(new float[(size_t)2 * h * n * d]);
    float *dk_parts = parts.get(), *dv_parts = parts.get() + (size_t)h * n * d;
    std::vector<int> firsts;
    for (int b = 0; b < static_cast<int>(a.blocks.size()); b++)
        if (a.blocks[b].first == b) firsts.push_back(b);
    firsts.push_back(static_cast<int>(a.blocks.size()));
    // An odd task out would keep one of two threads waiting: it is done in halves, whatever the
    // number of threads.
    const int tasks = documents * h, halves = tasks % 2 * 2, whole = tasks - halves / 2;
    const int64_t length = starts[documents] - starts[documents - 1];
    const std::unique_ptr<float[]> dq_halves(new float[(size_t)halves * length * d]);
#pragma omp parallel for schedule(dynamic, 1)
    for (int i = 0; i < whole + halves; i++) {
        const int at = std::min(i, tasks - 1), document = at / h, head = at % h;
        const bool is_half = i >= whole;
        const Task task{firsts[document], firsts[document + 1], head, i - whole, is_half ? 2 : 1};
        attend_back(a, y, dy, lse + head * n, task, dq,
                    is_half ? dq_halves.get() + task.part * length * d : nullptr,
                    dk_parts + (size_t)head * n * d, dv_parts + (size_t)head * n * d);
    }
#pragma omp parallel for
    for (int64_t t = 0; t < (halves ? length : 0); t++) {
        alignas(64) float line[128];
        const float *one = dq_halves.get() + t * d, *other = one + length * d;
        for (int j = 0; j < d; j++) line[j] = one[j] + other[j];
        round_line(line, d, dq + (starts[documents - 1] + t) * a.q_stride() + (h - 1) * d);
    }
    const int group = h / kv;
#pragma omp parallel for
    for (int64_t t = 0; t < n; t++)
        for (int head = 0; head < kv; head++)
            for (int j = 0; j < d; j += 16) {
                __m512 sum_k = _mm512_setzero_ps(), sum_v = _mm512_setzero_ps();
                for (int g = head * group; g < (head + 1) * group; g++) {
                    const size_t at = ((size_t)g * n + t) * d + j;
                    sum_k = _mm512_add_ps(sum_k, _mm512_loadu_ps(dk_parts + at));
                    sum_v = _mm512_add_ps(sum_v, _mm512_loadu_ps(dv_parts + at));
                }
                store(dk + (t * kv + head) * d + j, sum_k);
                store(dv + (t * kv + head) * d + j, sum_v);
            }
}

// Logits [n, v] become softmax - one-hot in place; nll [n] the losses.
void elchat_loss(bf16 *logits, const int64_t *targets, float *nll, int64_t n, int64_t v) {
#pragma omp parallel for schedule(dynamic, 8)
    for (int64_t t = 0; t < n; t++) {
        bf16 *row = logits + t * v;
        __m512 tops = _mm512_set1_ps(-3e38f), sums = _mm512_setzero_ps();
        for (int64_t j = 0; j < v; j += 16) tops = _mm512_max_ps(tops, load(row + j));
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(tops));
        for (int64_t j = 0; j < v; j += 16)
            sums = _mm512_add_ps(sums, exp16(_mm512_sub_ps(load(row + j), top)));
        const float log_sum = _mm512_cvtss_f32(top) + std::log(_mm512_reduce_add_ps(sums));
        uint32_t bits = static_cast<uint32_t>(row[targets[t]]) << 16;
        float picked;
        std::memcpy(&picked, &bits, 4);
        nll[t] = log_sum - picked;
        const __m512 shift = _mm512_set1_ps(log_sum);
        for (int64_t j = 0; j < v; j += 16)
            store(row + j, exp16(_mm512_sub_ps(load(row + j), shift)));
        const float d_target = std::exp(picked - log_sum) - 1.0f;
        std::memcpy(&bits, &d_target, 4);
        row[targets[t]] = static_cast<bf16>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
}

// Bytes of [n, c] for products that sum over the rows and, unless null, over the width.
void elchat_quantize(const bf16 *x, int64_t n, int64_t c, int8_t *by_row, float *row_scale,
                     int8_t *by_column, float *column_scale) {
    quantize(x, n, c, by_row, row_scale, by_column, column_scale, nullptr);
}

// A weight [n, c] for the product of both passes: in bfloat16, and as bytes.
void elchat_quantize_weight(const float *x, int64_t n, int64_t c, bf16 *copy, int8_t *by_column,
                            float *column_scale) {
    quantize<float>(x, n, c, nullptr, nullptr, by_column, column_scale, copy);
}

// y (+)= product · scales, [n, c].
void elchat_dequantize(const int32_t *product, const float *row_scale, const float *column_scale,
                       int64_t n, int64_t c, bf16 *y, int adds) {
    dequantize(product, row_scale, column_scale, n, c, y, adds != 0);
}

// The same in fp32, in the place of the product.
void elchat_dequantize_weight(int32_t *product, const float *row_scale, const float *column_scale,
                              int64_t n, int64_t c) {
    dequantize(product, row_scale, column_scale, n, c, reinterpret_cast<float *>(product), false);
}
}

#else

extern "C" int elchat_train_version() { return -1; }  // this processor has no bfloat16 products

#endif
