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
    void *keys, *values;  // [slots, kv_heads, ...]: `attention.h` or `attention_bf16.h`
};

struct Shape {
    int32_t layers, c, f, heads, kv_heads, head_dim, max_tokens, max_rows, is_cache_bf16;
    float eps;
};

// What autonomy asks of one layer; null where it asks nothing. A stride of 0 repeats one row.
struct Effect {
    const uint8_t *keep;                      // [rows]; 0 leaves the row as it was
    const float *noise, *attention_gain, *mlp_gain, *shift;  // [rows, c]
    int64_t noise_stride, attention_stride, mlp_stride, shift_stride;
    int32_t is_skipped;

    // The same for the rows from `row` on.
    Effect after(int row) const {
        const auto move = [row](const float *rows, int64_t stride) {
            return rows ? rows + row * stride : nullptr;
        };
        return {keep ? keep + row : nullptr,
                move(noise, noise_stride),
                move(attention_gain, attention_stride),
                move(mlp_gain, mlp_stride),
                move(shift, shift_stride),
                noise_stride, attention_stride, mlp_stride, shift_stride, is_skipped};
    }
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
        if (layers[0].down.kind == kFp32) hidden_.reset(new float[m * s_.f]);
        qkv_.reset(new float[m * panels(qkv_width_) * kPanel]);
        saved_.reset(new float[m * s_.c]);
        narrow_bytes_.reset(new int8_t[m * groups_of(wide) * kRecordBytes]);
        hidden_bytes_.reset(new int8_t[m * groups_of(s_.f) * kRecordBytes]);
        gated_.reset(new float[size_t(pool->threads()) * kChunkRows * kActivationGroup]);
        scores_.reset(new float[size_t(pool->threads()) * kMaxQueries * padded(s_.max_tokens)]);
        tiles_.reserve(m * s_.heads);
    }

    // After the last layer only the rows from `first_kept` on mean anything.
    void run(float *x, const Rows &rows, int begin, int end, const Effect *effects, int first_kept) {
        lay_tiles(rows, 0);
        for (int i = begin; i < end; i++) {
            const int from = i + 1 == s_.layers ? first_kept : 0;
            if (from > 0) lay_tiles(rows, from);
            layer(layers_[i], x, rows, effects ? effects + i : nullptr, from);
        }
    }

    // logits[count, head.n] of the rows of x; `normed` [count, c] receives their final states.
    void finish(const Matrix &head, const float *norm, const float *x, int count, float *normed,
                float *logits) {
        const Operand in = normalise(x, norm, count, nullptr, 0, head, normed);
        multiply(head, in, 0, [&head, logits](int m, int panel, F low_half, F high_half) {
            const int at = panel * kPanel, left = head.n - at;
            float *to = logits + size_t(m) * head.n + at;
            if (left >= kPanel) return store_panel(to, low_half, high_half);
            float last[kPanel];
            store_panel(last, low_half, high_half);
            std::memcpy(to, last, sizeof(float) * left);
        });
    }

  private:
    static constexpr int kChunkRows = 132;  // whole bands

    // Queries that share the walk over one slot's keys: some rows, some heads of one group.
    struct Tile {
        int row, rows, head, heads;
    };

    static int panels(int n) { return (n + kPanel - 1) / kPanel; }

    static void store_panel(float *to, F low_half, F high_half) {
        store(to, low_half);
        store(to + kLanes, high_half);
    }

    // Keys and values of every row; then what the rows from `from` on add to themselves.
    void layer(const Layer &w, float *x, const Rows &rows, const Effect *effect, int from) {
        const int q = s_.heads * s_.head_dim, count = rows.count;
        const bool is_skipped = effect && effect->is_skipped;
        const bool is_only_cached = is_skipped || from == count;
        if (effect && effect->noise) add_noise(x, count, *effect);
        const Operand attention_in =
            normalise(x, w.attention_norm, count, effect ? effect->attention_gain : nullptr,
                      effect ? effect->attention_stride : 0, w.qkv, narrow_.get());
        const int stride = panels(qkv_width_) * kPanel;
        multiply(w.qkv, attention_in, is_only_cached ? q / kPanel : 0,
                 [this, stride](int m, int panel, F low_half, F high_half) {
                     store_panel(qkv_.get() + size_t(m) * stride + panel * kPanel, low_half, high_half);
                 });
        place(w, rows, is_only_cached);
        if (is_only_cached) return;
        attend_all(w, rows, from);
        x += size_t(from) * s_.c;
        if (!effect) return mix(w, x, count - from, nullptr);
        const Effect theirs = effect->after(from);
        mix(w, x, count - from, &theirs);
    }

    // What attention found, and the MLP.
    void mix(const Layer &w, float *x, int count, const Effect *effect) {
        const int c = s_.c;
        const auto add_to_x = [x, c](int m, int panel, F low_half, F high_half) {
            float *to = x + size_t(m) * c + panel * kPanel;
            store_panel(to, add(load(to), low_half), add(load(to + kLanes), high_half));
        };
        if (effect && effect->keep) std::copy(x, x + size_t(count) * c, saved_.get());
        multiply(w.out, quantized(w.out, count), 0, add_to_x);
        const Operand mlp_in =
            normalise(x, w.mlp_norm, count, effect ? effect->mlp_gain : nullptr,
                      effect ? effect->mlp_stride : 0, w.gate_up, narrow_.get());
        multiply(w.down, gate(w, mlp_in), 0, add_to_x);
        if (effect) settle(x, count, *effect);
    }

    static F gated(F gate, F up) {
        return mul(div(gate, add(all(1.0f), exp(sub(zeros(), gate)))), up);
    }

    // What goes into the second matrix of the MLP.
    Operand gate(const Layer &w, const Operand &x) {
        const int f = s_.f, total = panels(w.gate_up.n);
        const Operand out{hidden_.get(), {hidden_bytes_.get(), x.i8.count, groups_of(f)}};
        if (w.down.kind == kFp32) {
            multiply(w.gate_up, x, 0, [this, f](int m, int panel, F gate, F up) {
                store(hidden_.get() + size_t(m) * f + panel * kLanes, gated(gate, up));
            });
            return out;
        }
        // Four panels make a group, which goes to 8 bits while it is in the first cache.
        constexpr int kStep = kActivationGroup / kLanes;
        const int groups = out.i8.groups, chunks = chunks_of(x.i8.count);
        pool_->each(groups * chunks, [=, this, &w](int piece, int thread) {
            const int group = piece % groups, first = group * kStep;
            const int from = piece / groups * kChunkRows;
            const int to = std::min(from + kChunkRows, x.i8.count);
            float *rows = gated_.get() + size_t(thread) * kChunkRows * kActivationGroup;
            linear(w.gate_up, x, from, to, first, std::min(first + kStep, total),
                   [&](int m, int panel, F gate, F up) {
                       store(rows + (m - from) * kActivationGroup + (panel - first) * kLanes,
                             gated(gate, up));
                   });
            for (int m = from; m < to; m++)
                quantize_group(out.i8, m, group, rows + (m - from) * kActivationGroup,
                               std::min(kActivationGroup, f - group * kActivationGroup),
                               w.down.kind == kInt8);
        });
        return out;
    }

    // Rows of x normalised into `out`, and as the next matrix takes them.
    Operand normalise(const float *x, const float *weight, int count, const float *gain,
                      int64_t stride, const Matrix &next, float *out) {
        const Operand made = operand(out, count, next);
        pool_->each(count, [=, this, &next](int m, int) {
            float *row = out + size_t(m) * s_.c;
            norm_row(x + size_t(m) * s_.c, weight, s_.c, s_.eps, gain ? gain + m * stride : nullptr,
                     row);
            quantize_row(made, m, next);
        });
        return made;
    }

    // What attention wrote, as the next matrix takes it.
    Operand quantized(const Matrix &next, int count) {
        const Operand made = operand(narrow_.get(), count, next);
        if (next.kind != kFp32)
            pool_->each(count, [made, &next](int m, int) { quantize_row(made, m, next); });
        return made;
    }

    Operand operand(const float *x, int count, const Matrix &next) const {
        return {x, {narrow_bytes_.get(), count, groups_of(next.k)}};
    }

    static void quantize_row(const Operand &x, int m, const Matrix &next) {
        if (next.kind == kFp32) return;
        for (int at = 0; at < next.k; at += kActivationGroup)
            quantize_group(x.i8, m, at / kActivationGroup, x.f32 + size_t(m) * next.k + at,
                           std::min(kActivationGroup, next.k - at), next.kind == kInt8);
    }

    static int chunks_of(int count) { return (count + kChunkRows - 1) / kChunkRows; }

    // Panels from `begin` on; calls write(m, panel, low half, high half). Many rows are taken in
    // chunks, which stay in the second-level cache.
    template <class Write>
    void multiply(const Matrix &w, const Operand &x, int begin, Write &&write) {
        const int total = panels(w.n) - begin, count = x.i8.count;
        const int step = std::clamp(total / (pool_->threads() * kPiecesPerThread), 1, kMaxPanels);
        const int ranges = (total + step - 1) / step;
        pool_->each(ranges * chunks_of(count), [=, &w](int piece, int) {
            const int first = begin + piece % ranges * step, row = piece / ranges * kChunkRows;
            linear(w, x, row, std::min(row + kChunkRows, count), first,
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
        with_cache(w, [&](auto *keys, auto *values) {
            pool_->each(rows.count, [=, this](int m, int) {
                place_row(keys, values, m, rows.slot[m], rows.position[m], is_skipped);
            });
        });
    }

    template <class Cached>
    void place_row(Cached *keys, Cached *values, int m, int slot, int position, bool is_skipped) {
        const int d = s_.head_dim, half = d / 2;
        float *row = qkv_.get() + size_t(m) * panels(qkv_width_) * kPanel;
        const float *cosine = cos_ + size_t(position) * half;
        const float *sine = sin_ + size_t(position) * half;
        for (int h = is_skipped ? s_.heads : 0; h < s_.heads + s_.kv_heads; h++) {
            float *first = row + h * d, *second = first + half;
            for (int i = 0; i < half; i++) {
                const float a = first[i], b = second[i];
                first[i] = a * cosine[i] - b * sine[i];
                second[i] = b * cosine[i] + a * sine[i];
            }
            if (h < s_.heads) write_query(keys, first, d);
        }
        float *k = row + s_.heads * d, *v = k + s_.kv_heads * d;
        for (int h = 0; h < s_.kv_heads; h++) {
            const size_t at = start_of(slot, h);
            write_key(keys + at, k + h * d, position, d);
            write_value(values + at, v + h * d, position, d);
        }
    }

    // Calls use(keys, values) with the type the cache has.
    template <class Use> void with_cache(const Layer &w, Use &&use) {
#if defined(ELCHAT_BF16)
        if (s_.is_cache_bf16)
            return use(static_cast<uint16_t *>(w.keys), static_cast<uint16_t *>(w.values));
#endif
        use(static_cast<float *>(w.keys), static_cast<float *>(w.values));
    }

    size_t start_of(int slot, int kv_head) const {
        return (size_t(slot) * s_.kv_heads + kv_head) * s_.max_tokens * s_.head_dim;
    }

    // A few rows leave threads idle unless their heads are shared out one by one.
    void lay_tiles(const Rows &rows, int from) {
        const int group = s_.heads / s_.kv_heads;
        const bool is_scarce = (rows.count - from) * s_.kv_heads < 4 * pool_->threads();
        const int heads = is_scarce ? 1 : std::min(group, kMaxQueries);
        const int most = is_scarce ? 1 : std::max(1, kMaxQueries / heads);
        tiles_.clear();
        for (int row = from, n; row < rows.count; row += n) {
            for (n = 1; n < most && row + n < rows.count && rows.slot[row + n] == rows.slot[row];) n++;
            for (int kv = 0; kv < s_.kv_heads; kv++)
                for (int h = 0; h < group; h += heads)
                    tiles_.push_back({row, n, kv * group + h, std::min(heads, group - h)});
        }
    }

    void attend_all(const Layer &w, const Rows &rows, int from) {
        with_cache(w, [&](auto *keys, auto *values) {
            pool_->each(static_cast<int>(tiles_.size()), [=, this](int piece, int thread) {
                attend_tile(keys, values, rows, tiles_[piece], from, thread);
            });
        });
    }

    template <class Cached>
    void attend_tile(const Cached *keys, const Cached *values, const Rows &rows, const Tile &tile,
                     int from, int thread) {
        const int d = s_.head_dim, group = s_.heads / s_.kv_heads, stride = padded(s_.max_tokens);
        Query queries[kMaxQueries];
        int n = 0;
        for (int m = tile.row; m < tile.row + tile.rows; m++)
            for (int h = tile.head; h < tile.head + tile.heads; h++)
                queries[n++] = {qkv_.get() + size_t(m) * panels(qkv_width_) * kPanel + h * d,
                                narrow_.get() + (size_t(m - from) * s_.heads + h) * d,
                                rows.position[m] + 1};
        const size_t at = start_of(rows.slot[tile.row], tile.head / group);
        attend(queries, n, keys + at, values + at, d,
               scores_.get() + size_t(thread) * kMaxQueries * stride, stride);
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

    static constexpr int kPiecesPerThread = 8, kMaxPanels = 16;
    static_assert(kChunkRows % kBand == 0);

    Shape s_;
    std::vector<Layer> layers_;
    const float *cos_, *sin_;  // [max_tokens, head_dim / 2]
    Pool *pool_;
    int qkv_width_;
    // What flows between the stages: [rows, ...].
    std::unique_ptr<float[]> narrow_, qkv_, hidden_, saved_, gated_, scores_;
    std::unique_ptr<int8_t[]> narrow_bytes_, hidden_bytes_;
    std::vector<Tile> tiles_;
};

}  // namespace elchat

extern "C" {

int32_t elchat_native_version() { return 4; }

// Whether keys and values may be kept in bfloat16.
int32_t elchat_has_bf16() { return elchat::kHasBf16; }

void *elchat_pool_new(int32_t threads) { return new elchat::Pool(threads); }
void elchat_pool_free(void *pool) { delete static_cast<elchat::Pool *>(pool); }

void *elchat_model_new(const elchat::Shape *shape, const elchat::Layer *layers,
                       const float *cosines, const float *sines, void *pool) {
    return new elchat::Model(*shape, layers, cosines, sines, static_cast<elchat::Pool *>(pool));
}
void elchat_model_free(void *model) { delete static_cast<elchat::Model *>(model); }

// x: [count, c], changed in place. effects: one for each layer of the model, or null.
// After the last layer only the rows from `first_kept` on mean anything.
void elchat_model_run(void *model, float *x, int32_t count, const int32_t *slot,
                      const int32_t *position, int32_t begin, int32_t end,
                      const elchat::Effect *effects, int32_t first_kept) {
    static_cast<elchat::Model *>(model)->run(x, {count, slot, position}, begin, end, effects,
                                             first_kept);
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
