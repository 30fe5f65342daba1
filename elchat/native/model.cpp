// The forward pass of `gpt.GPT` for a handful of tokens, over slots of cached keys and values.
//
// Every token is a row with its own slot and position; a chunk of one prompt and one token of each
// of many replies are the same thing here. A row's arithmetic never depends on the other rows.
// Called from Python through the C functions at the end; nothing is allocated while running.
#include <algorithm>
#include <memory>

#include "linear.h"
#include "pool.h"

namespace elchat {

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *attention_norm, *mlp_norm;  // [c]
    float *keys, *values;                    // [slots, kv_heads, max_tokens, head_dim]
};

struct Shape {
    int32_t layers, c, f, heads, kv_heads, head_dim, max_tokens, max_rows;
    float eps;
};

// What autonomy asks of one layer; null where it asks nothing. A stride of 0 repeats one row.
struct Effect {
    const uint8_t *keep;                      // [rows]; 0 leaves the row as it was
    const float *noise, *attention_gain, *mlp_gain, *shift;  // [rows, c]
    int64_t noise_stride, attention_stride, mlp_stride, shift_stride;
    int32_t is_skipped;
};

struct Rows {
    int32_t count;
    const int32_t *slot, *position;
};

inline float mean_of_squares(const float *x, int c) {
    f8 total = all8(0.0f);
    for (int i = 0; i < c; i += 8) total += load8(x + i) * load8(x + i);
    return sum8(total) / static_cast<float>(c);
}

inline void norm_row(const float *x, const float *weight, int c, float eps, const float *gain,
                     float *out) {
    float inverse = 1.0f / std::sqrt(mean_of_squares(x, c) + eps);
    for (int i = 0; i < c; i += 8) {
        f8 y = load8(x + i) * inverse * load8(weight + i);
        if (gain) y = y * (1.0f + load8(gain + i));
        store8(out + i, y);
    }
}

class Model {
  public:
    Model(const Shape &shape, const Layer *layers, const float *cosines, const float *sines,
          Pool *pool)
        : s_(shape), layers_(layers, layers + shape.layers), cos_(cosines), sin_(sines),
          pool_(pool) {
        const size_t m = s_.max_rows, wide = std::max({s_.c, s_.f, s_.heads * s_.head_dim});
        normed_.reset(new float[m * wide]);
        qkv_.reset(new float[m * (s_.heads + 2 * s_.kv_heads) * s_.head_dim]);
        hidden_.reset(new float[m * 2 * s_.f]);
        saved_.reset(new float[m * s_.c]);
        integers_.reset(new int16_t[m * wide]);
        scales_.reset(new float[m]);
        scores_.reset(new float[size_t(pool->threads()) * kScoreRows * padded(s_.max_tokens)]);
    }

    void run(float *x, const Rows &rows, int begin, int end, const Effect *effects) {
        for (int i = begin; i < end; i++) layer(layers_[i], x, rows, effects ? effects + i : nullptr);
    }

    // logits[count, head.n] of the rows of x; `normed` [count, c] receives their final states.
    void finish(const Matrix &head, const float *norm, const float *x, int count, float *normed,
                float *logits) {
        pool_->each(count, [&](int m, int) {
            norm_row(x + size_t(m) * s_.c, norm, s_.c, s_.eps, nullptr, normed + size_t(m) * s_.c);
        });
        multiply(head, normed, count, 0, head.n, [&](int m, int n, float y) {
            logits[size_t(m) * head.n + n] = y;
        });
    }

  private:
    static constexpr int kScoreRows = 8;
    static int padded(int n) { return (n + 7) & ~7; }

    void layer(const Layer &w, float *x, const Rows &rows, const Effect *effect) {
        const int c = s_.c, q = s_.heads * s_.head_dim, kv = s_.kv_heads * s_.head_dim;
        const int count = rows.count;
        if (effect && effect->noise) add_noise(x, count, *effect);
        if (effect && effect->keep) std::copy(x, x + size_t(count) * c, saved_.get());
        normalise(x, w.attention_norm, count, effect ? effect->attention_gain : nullptr,
                  effect ? effect->attention_stride : 0);
        const bool is_skipped = effect && effect->is_skipped;
        const int width = q + 2 * kv;
        multiply(w.qkv, normed_.get(), count, is_skipped ? q : 0, width,
                 [&](int m, int n, float y) { qkv_[size_t(m) * width + n] = y; });
        place(w, rows, is_skipped);
        if (is_skipped) return;
        attend(w, rows);
        multiply(w.out, normed_.get(), count, 0, c,
                 [&](int m, int n, float y) { x[size_t(m) * c + n] += y; });
        normalise(x, w.mlp_norm, count, effect ? effect->mlp_gain : nullptr,
                  effect ? effect->mlp_stride : 0);
        multiply(w.gate_up, normed_.get(), count, 0, 2 * s_.f,
                 [&](int m, int n, float y) { hidden_[size_t(m) * 2 * s_.f + n] = y; });
        gate(count);
        multiply(w.down, normed_.get(), count, 0, c,
                 [&](int m, int n, float y) { x[size_t(m) * c + n] += y; });
        if (effect) settle(x, count, *effect);
    }

    template <class Write>
    void multiply(const Matrix &w, const float *x, int count, int begin, int end, Write &&write) {
        if (w.kind != kFp32) {
            const int limit = activation_limit(w);
            pool_->each(count, [&](int m, int) {
                scales_[m] = quantize_row(x + size_t(m) * w.k, w.k, limit,
                                          integers_.get() + size_t(m) * w.k);
            });
        }
        const Operand operand{x, integers_.get(), scales_.get()};
        const int step = piece_of(end - begin, count);
        pool_->each((end - begin + step - 1) / step, [&](int piece, int) {
            const int from = begin + piece * step;
            linear(w, operand, count, from, std::min(from + step, end), write);
        });
    }

    // Output rows of one piece of work: a multiple of 12 (whole register blocks), small enough
    // that threads end together, large enough to be worth taking.
    int piece_of(int n, int count) const {
        const int target = n / (pool_->threads() * (count > 4 ? 12 : 6));
        return std::clamp(target / 12 * 12, 24, 768);
    }

    void add_noise(float *x, int count, const Effect &effect) {
        for (int m = 0; m < count; m++) {
            float *row = x + size_t(m) * s_.c;
            const float *noise = effect.noise + m * effect.noise_stride;
            const float rms = std::sqrt(mean_of_squares(row, s_.c));
            for (int i = 0; i < s_.c; i += 8) store8(row + i, load8(row + i) + load8(noise + i) * rms);
        }
    }

    void normalise(const float *x, const float *weight, int count, const float *gain,
                   int64_t stride) {
        pool_->each(count, [&](int m, int) {
            norm_row(x + size_t(m) * s_.c, weight, s_.c, s_.eps, gain ? gain + m * stride : nullptr,
                     normed_.get() + size_t(m) * s_.c);
        });
    }

    // Rotate queries and keys in place and write keys and values to the cache.
    void place(const Layer &w, const Rows &rows, bool is_skipped) {
        const int d = s_.head_dim, half = d / 2, width = (s_.heads + 2 * s_.kv_heads) * d;
        pool_->each(rows.count, [&](int m, int) {
            float *row = qkv_.get() + size_t(m) * width;
            const float *cosine = cos_ + size_t(rows.position[m]) * half;
            const float *sine = sin_ + size_t(rows.position[m]) * half;
            for (int h = is_skipped ? s_.heads : 0; h < s_.heads + s_.kv_heads; h++) {
                float *first = row + h * d, *second = first + half;
                for (int i = 0; i < half; i++) {
                    const float a = first[i], b = second[i];
                    first[i] = a * cosine[i] - b * sine[i];
                    second[i] = b * cosine[i] + a * sine[i];
                }
            }
            const float *k = row + s_.heads * d, *v = k + s_.kv_heads * d;
            for (int h = 0; h < s_.kv_heads; h++) {
                const size_t at = cell(rows.slot[m], h, rows.position[m]);
                std::memcpy(w.keys + at, k + h * d, sizeof(float) * d);
                std::memcpy(w.values + at, v + h * d, sizeof(float) * d);
            }
        });
    }

    size_t cell(int slot, int head, int position) const {
        return ((size_t(slot) * s_.kv_heads + head) * s_.max_tokens + position) * s_.head_dim;
    }

    void attend(const Layer &w, const Rows &rows) {
        const int d = s_.head_dim, width = (s_.heads + 2 * s_.kv_heads) * d;
        pool_->each(rows.count * s_.heads, [&](int piece, int thread) {
            const int m = piece / s_.heads, h = piece % s_.heads;
            const int kv = h / (s_.heads / s_.kv_heads);
            const size_t at = cell(rows.slot[m], kv, 0);
            float *scores = scores_.get() + size_t(thread) * kScoreRows * padded(s_.max_tokens);
            attend_one(qkv_.get() + size_t(m) * width + h * d, w.keys + at, w.values + at,
                       rows.position[m] + 1, scores,
                       normed_.get() + (size_t(m) * s_.heads + h) * d);
        });
    }

    // Softmax over `n` cached tokens in two passes, in the order of their positions.
    void attend_one(const float *q, const float *keys, const float *values, int n, float *scores,
                    float *out) const {
        const int d = s_.head_dim;
        const float scale = 1.0f / std::sqrt(static_cast<float>(d));
        const int end = padded(n);
        f8 tops = all8(-INFINITY);
        for (int s = 0; s < end; s += 8) {  // past n lies unused room of the slot
            f8 sums[8];
            for (int j = 0; j < 8; j++) sums[j] = load8(q) * load8(keys + size_t(s + j) * d);
            for (int i = 8; i < d; i += 8) {
                const f8 part = load8(q + i);
                for (int j = 0; j < 8; j++) sums[j] += part * load8(keys + size_t(s + j) * d + i);
            }
            f8 eight = sums8(sums) * scale;
            for (int j = n - s; j < 8; j++) eight[j] = -INFINITY;
            store8(scores + s, eight);
            tops = larger(tops, eight);
        }
        const float top = max8(tops);
        f8 total = all8(0.0f);
        for (int s = 0; s < end; s += 8) {
            f8 e = exp8(load8(scores + s) - top);
            store8(scores + s, e);
            total += e;
        }
        const float inverse = 1.0f / sum8(total);
        for (int i = 0; i < d; i += 32) weigh(scores, values + i, n, inverse, std::min(32, d - i), out + i);
    }

    void weigh(const float *scores, const float *values, int n, float inverse, int width,
               float *out) const {
        f8 sums[4] = {all8(0.0f), all8(0.0f), all8(0.0f), all8(0.0f)};
        for (int s = 0; s < n; s++) {
            const f8 p = all8(scores[s]);
            const float *v = values + size_t(s) * s_.head_dim;
            for (int j = 0; j * 8 < width; j++) sums[j] += p * load8(v + j * 8);
        }
        for (int j = 0; j * 8 < width; j++) store8(out + j * 8, sums[j] * inverse);
    }

    void gate(int count) {
        const int f = s_.f;
        pool_->each(count, [&](int m, int) {
            const float *g = hidden_.get() + size_t(m) * 2 * f, *up = g + f;
            float *out = normed_.get() + size_t(m) * f;
            for (int i = 0; i < f; i += 8) {
                f8 v = load8(g + i);
                store8(out + i, v / (1.0f + exp8(-v)) * load8(up + i));
            }
        });
    }

    // The shift of the mood, then the rows that skip the layer go back to what they were.
    void settle(float *x, int count, const Effect &effect) {
        for (int m = 0; m < count; m++) {
            float *row = x + size_t(m) * s_.c;
            if (effect.shift) {
                const float *shift = effect.shift + m * effect.shift_stride;
                for (int i = 0; i < s_.c; i += 8) store8(row + i, load8(row + i) + load8(shift + i));
            }
            if (effect.keep && !effect.keep[m])
                std::memcpy(row, saved_.get() + size_t(m) * s_.c, sizeof(float) * s_.c);
        }
    }

    Shape s_;
    std::vector<Layer> layers_;
    const float *cos_, *sin_;  // [max_tokens, head_dim / 2]
    Pool *pool_;
    std::unique_ptr<float[]> normed_, qkv_, hidden_, saved_, scales_, scores_;
    std::unique_ptr<int16_t[]> integers_;
};

}  // namespace elchat

extern "C" {

int32_t elchat_native_version() { return 1; }

void *elchat_pool_new(int32_t threads) { return new elchat::Pool(threads); }
void elchat_pool_free(void *pool) { delete static_cast<elchat::Pool *>(pool); }

void *elchat_model_new(const elchat::Shape *shape, const elchat::Layer *layers,
                       const float *cosines, const float *sines, void *pool) {
    return new elchat::Model(*shape, layers, cosines, sines, static_cast<elchat::Pool *>(pool));
}
void elchat_model_free(void *model) { delete static_cast<elchat::Model *>(model); }

// x: [count, c], changed in place. effects: one for each layer of the model, or null.
void elchat_model_run(void *model, float *x, int32_t count, const int32_t *slot,
                      const int32_t *position, int32_t begin, int32_t end,
                      const elchat::Effect *effects) {
    static_cast<elchat::Model *>(model)->run(x, {count, slot, position}, begin, end, effects);
}

void elchat_model_finish(void *model, const elchat::Matrix *head, const float *norm,
                         const float *x, int32_t count, float *normed, float *logits) {
    static_cast<elchat::Model *>(model)->finish(*head, norm, x, count, normed, logits);
}
}
