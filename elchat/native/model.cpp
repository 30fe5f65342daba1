// The forward pass of `gpt.GPT` for a handful of tokens, over slots of cached keys and values.
//
// Every token is a row with its own slot and position; a chunk of one prompt and one token of each
// of many replies are the same thing here. A row's arithmetic never depends on the other rows.
// Called from Python through the C functions at the end; nothing is allocated while running.
#include <algorithm>
#include <memory>

#include "attention.h"
#include "linear.h"
#include "pool.h"

namespace elchat {

struct Layer {
    Matrix qkv, out, gate_up, down;  // gate_up: each panel has 16 of gate, then the same 16 of up
    const float *attention_norm, *mlp_norm;  // [c]
    float *keys;    // [slots, kv_heads, max_tokens / 16, head_dim, 16]
    float *values;  // [slots, kv_heads, max_tokens, head_dim]
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
          pool_(pool), qkv_width_(layers[0].qkv.n) {
        const size_t m = s_.max_rows, wide = std::max({s_.c, s_.f, s_.heads * s_.head_dim});
        narrow_.reset(new float[m * wide]);
        hidden_.reset(new float[m * s_.f]);
        qkv_.reset(new float[m * panels(qkv_width_) * kPanel]);
        saved_.reset(new float[m * s_.c]);
        bytes_.reset(new int8_t[m * wide]);
        scales_.reset(new float[m * groups_of(wide)]);
        starts_.reset(new int32_t[m * (wide / kWeightGroup)]);
        scores_.reset(new float[size_t(pool->threads()) * kMaxQueries * padded(s_.max_tokens)]);
        tiles_.reserve(m * s_.heads);
    }

    void run(float *x, const Rows &rows, int begin, int end, const Effect *effects) {
        lay_tiles(rows);
        for (int i = begin; i < end; i++) layer(layers_[i], x, rows, effects ? effects + i : nullptr);
    }

    // logits[count, head.n] of the rows of x; `normed` [count, c] receives their final states.
    void finish(const Matrix &head, const float *norm, const float *x, int count, float *normed,
                float *logits) {
        normalise(x, norm, count, nullptr, 0, head, normed);
        multiply(head, normed, count, 0, [&](int m, int panel, F low_half, F high_half) {
            const int at = panel * kPanel, left = head.n - at;
            float *to = logits + size_t(m) * head.n + at;
            if (left >= kPanel) return store_panel(to, low_half, high_half);
            float last[kPanel];
            store_panel(last, low_half, high_half);
            std::memcpy(to, last, sizeof(float) * left);
        });
    }

  private:
    // Queries that share the walk over one slot's keys: some rows, some heads of one group.
    struct Tile {
        int row, rows, head, heads;
    };

    static int panels(int n) { return (n + kPanel - 1) / kPanel; }

    static void store_panel(float *to, F low_half, F high_half) {
        store(to, low_half);
        store(to + kLanes, high_half);
    }

    void layer(const Layer &w, float *x, const Rows &rows, const Effect *effect) {
        const int c = s_.c, f = s_.f, q = s_.heads * s_.head_dim, count = rows.count;
        const bool is_skipped = effect && effect->is_skipped;
        const auto add_to_x = [&](int m, int panel, F low_half, F high_half) {
            float *to = x + size_t(m) * c + panel * kPanel;
            store_panel(to, add(load(to), low_half), add(load(to + kLanes), high_half));
        };
        if (effect && effect->noise) add_noise(x, count, *effect);
        if (effect && effect->keep) std::copy(x, x + size_t(count) * c, saved_.get());
        normalise(x, w.attention_norm, count, effect ? effect->attention_gain : nullptr,
                  effect ? effect->attention_stride : 0, w.qkv, narrow_.get());
        const int stride = panels(qkv_width_) * kPanel;
        multiply(w.qkv, narrow_.get(), count, is_skipped ? q / kPanel : 0,
                 [&](int m, int panel, F low_half, F high_half) {
                     store_panel(qkv_.get() + size_t(m) * stride + panel * kPanel, low_half, high_half);
                 });
        place(w, rows, is_skipped);
        if (is_skipped) return;
        attend_all(w, rows);
        quantize(w.out, narrow_.get(), count);
        multiply(w.out, narrow_.get(), count, 0, add_to_x);
        normalise(x, w.mlp_norm, count, effect ? effect->mlp_gain : nullptr,
                  effect ? effect->mlp_stride : 0, w.gate_up, narrow_.get());
        multiply(w.gate_up, narrow_.get(), count, 0, [&](int m, int panel, F gate, F up) {
            store(hidden_.get() + size_t(m) * f + panel * kLanes, gated(gate, up));
        });
        quantize(w.down, hidden_.get(), count);
        multiply(w.down, hidden_.get(), count, 0, add_to_x);
        if (effect) settle(x, count, *effect);
    }

    static F gated(F gate, F up) {
        const auto half = [](f8 g, f8 u) { return g / (1.0f + exp8(-g)) * u; };
        return join(half(low(gate), low(up)), half(high(gate), high(up)));
    }

    // Rows of x normalised into `out`, ready for the matrix that comes next.
    void normalise(const float *x, const float *weight, int count, const float *gain,
                   int64_t stride, const Matrix &next, float *out) {
        pool_->each(count, [&](int m, int) {
            float *row = out + size_t(m) * s_.c;
            norm_row(x + size_t(m) * s_.c, weight, s_.c, s_.eps, gain ? gain + m * stride : nullptr,
                     row);
            if (next.kind != kFp32) quantize_row(next, row, operand(out), m);
        });
    }

    void quantize(const Matrix &next, const float *x, int count) {
        if (next.kind == kFp32) return;
        pool_->each(count, [&](int m, int) {
            quantize_row(next, x + size_t(m) * next.k, operand(x), m);
        });
    }

    Operand operand(const float *x) const {
        return {x, bytes_.get(), scales_.get(), starts_.get()};
    }

    // Panels from `begin` on; calls write(m, panel, low half, high half). Many rows are taken in
    // chunks, which stay in the second-level cache.
    template <class Write>
    void multiply(const Matrix &w, const float *x, int count, int begin, Write &&write) {
        const Operand from = operand(x);
        const int total = panels(w.n) - begin;
        const int step = std::clamp(total / (pool_->threads() * kPiecesPerThread), 1, kMaxPanels);
        const int ranges = (total + step - 1) / step, chunks = (count + kChunkRows - 1) / kChunkRows;
        pool_->each(ranges * chunks, [&](int piece, int) {
            const int first = begin + piece % ranges * step, row = piece / ranges * kChunkRows;
            linear(w, from, row, std::min(row + kChunkRows, count), first,
                   std::min(first + step, begin + total), write);
        });
    }

    void add_noise(float *x, int count, const Effect &effect) {
        for (int m = 0; m < count; m++) {
            float *row = x + size_t(m) * s_.c;
            const float *noise = effect.noise + m * effect.noise_stride;
            const float rms = std::sqrt(mean_of_squares(row, s_.c));
            for (int i = 0; i < s_.c; i += 8) store8(row + i, load8(row + i) + load8(noise + i) * rms);
        }
    }

    // Rotate queries and keys in place and write keys and values to the cache.
    void place(const Layer &w, const Rows &rows, bool is_skipped) {
        const int d = s_.head_dim, half = d / 2, stride = panels(qkv_width_) * kPanel;
        pool_->each(rows.count, [&](int m, int) {
            float *row = qkv_.get() + size_t(m) * stride;
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
                const size_t at = start_of(rows.slot[m], h);
                write_key(w.keys + at, k + h * d, rows.position[m], d);
                std::memcpy(w.values + at + size_t(rows.position[m]) * d, v + h * d,
                            sizeof(float) * d);
            }
        });
    }

    size_t start_of(int slot, int kv_head) const {
        return (size_t(slot) * s_.kv_heads + kv_head) * s_.max_tokens * s_.head_dim;
    }

    // A few rows leave threads idle unless their heads are shared out one by one.
    void lay_tiles(const Rows &rows) {
        const int group = s_.heads / s_.kv_heads;
        const bool is_scarce = rows.count * s_.kv_heads < 4 * pool_->threads();
        const int heads = is_scarce ? 1 : std::min(group, kMaxQueries);
        const int most = is_scarce ? 1 : std::max(1, kMaxQueries / heads);
        tiles_.clear();
        for (int row = 0, n; row < rows.count; row += n) {
            for (n = 1; n < most && row + n < rows.count && rows.slot[row + n] == rows.slot[row];) n++;
            for (int kv = 0; kv < s_.kv_heads; kv++)
                for (int h = 0; h < group; h += heads)
                    tiles_.push_back({row, n, kv * group + h, std::min(heads, group - h)});
        }
    }

    void attend_all(const Layer &w, const Rows &rows) {
        const int d = s_.head_dim, group = s_.heads / s_.kv_heads, stride = padded(s_.max_tokens);
        pool_->each(static_cast<int>(tiles_.size()), [&](int piece, int thread) {
            const Tile &tile = tiles_[piece];
            Query queries[kMaxQueries];
            int n = 0;
            for (int m = tile.row; m < tile.row + tile.rows; m++)
                for (int h = tile.head; h < tile.head + tile.heads; h++)
                    queries[n++] = {qkv_.get() + size_t(m) * panels(qkv_width_) * kPanel + h * d,
                                    narrow_.get() + (size_t(m) * s_.heads + h) * d,
                                    rows.position[m] + 1};
            const size_t at = start_of(rows.slot[tile.row], tile.head / group);
            attend(queries, n, w.keys + at, w.values + at, d,
                   scores_.get() + size_t(thread) * kMaxQueries * stride, stride);
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

    static constexpr int kChunkRows = 96, kPiecesPerThread = 8, kMaxPanels = 16;

    Shape s_;
    std::vector<Layer> layers_;
    const float *cos_, *sin_;  // [max_tokens, head_dim / 2]
    Pool *pool_;
    int qkv_width_;
    // What flows between the stages: [rows, ...].
    std::unique_ptr<float[]> narrow_, qkv_, hidden_, saved_, scales_, scores_;
    std::unique_ptr<int8_t[]> bytes_;
    std::unique_ptr<int32_t[]> starts_;
    std::vector<Tile> tiles_;
};

}  // namespace elchat

extern "C" {

int32_t elchat_native_version() { return 2; }

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

// out[count, k]: rows of an fp32 or int8 matrix.
void elchat_rows(const elchat::Matrix *matrix, const int32_t *index, int32_t count, float *out) {
    for (int i = 0; i < count; i++)
        elchat::copy_row(*matrix, index[i], out + size_t(i) * matrix->k);
}

void elchat_model_finish(void *model, const elchat::Matrix *head, const float *norm,
                         const float *x, int32_t count, float *normed, float *logits) {
    static_cast<elchat::Model *>(model)->finish(*head, norm, x, count, normed, logits);
}
}
