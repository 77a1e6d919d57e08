// The C interface of the native kernels (no torch headers: Python passes pointers), the choice of instruction set, and the threads.
//
// All tensors are contiguous float32 in PyTorch's layouts, except feature maps, which are channels-last with `step` floats from pixel to pixel.
// Every function returns 0, or 1 if memory for its scratch is lacking.
#include "film.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

using namespace film;

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct Aligned {
    float* data;
    explicit Aligned(Index n) : data(static_cast<float*>(::operator new(n * sizeof(float), std::align_val_t(64)))) {}
    ~Aligned() { ::operator delete(data, std::align_val_t(64)); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
};

struct Set { const Kernels* kernels; const Gradients* gradients; };

// The kernels for an instruction set, if this machine has it
Set supported(const char* name) {
#ifdef FILM_X86
    if (!std::strcmp(name, "AVX-512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) return {&avx512_kernels, &avx512_gradients};
    if (!std::strcmp(name, "AVX2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {&avx2_kernels, &avx2_gradients};
#endif
    if (!std::strcmp(name, "plain")) return {&plain_kernels, &plain_gradients};
    return {nullptr, nullptr};
}

Set best() {
    for (const char* name : {"AVX-512", "AVX2"})
        if (Set set = supported(name); set.kernels) return set;
    return supported("plain");
}

Set active = best();

// run(task, thread) for every task. Threads take the next task when they are free; there are as many as can be had, at most `threads`.
template <class Run>
void parallel(Index threads, Index tasks, Run run) {
    std::atomic<Index> next{0};
    auto work = [&](Index thread) { for (Index task; (task = next++) < tasks;) run(task, thread); };
    std::vector<std::thread> others;
    try {
        others.reserve(threads);
        for (Index thread = 1; thread < std::min(threads, tasks); thread++) others.emplace_back(work, thread);
    } catch (const std::system_error&) {}  // no more threads on this system: fewer do the work
    work(0);
    for (auto& other : others) other.join();
}

// parallel, with scratch for each thread
template <class Run>
int run_tasks(Index threads, Index tasks, Index scratch, Run run) {
    scratch = (scratch + 15) / 16 * 16;
    threads = std::max<Index>(1, std::min(threads, tasks));
    Aligned all(scratch * threads);
    parallel(threads, tasks, [&](Index task, Index thread) { run(task, all.data + scratch * thread); });
    return 0;
}

// The image in tiles of nearly equal size. Their width bounds the rows that a tile keeps, so that these stay in the cache of one core;
// their height bounds what neighbouring tiles compute twice.
struct Tiles {
    Index H, W, across, down;
    Tiles(Index H, Index W) : H(H), W(W), across((W + 63) / 64), down((H + 63) / 64) {}
    Index count() const { return across * down; }
    Index width() const { return (W + across - 1) / across; }  // of the widest
    Tile operator[](Index task) const {
        const Index x = task % across, y = task / across;
        return {x * W / across, (x + 1) * W / across, y * H / down, (y + 1) * H / down};
    }
};

// Rows in bands of nearly equal height
struct Bands {
    struct Band { Index first, last; };
    Index rows, bands;
    explicit Bands(Index rows) : rows(rows), bands((rows + 15) / 16) {}
    Index count() const { return bands; }
    Band operator[](Index band) const { return {band * rows / bands, (band + 1) * rows / bands}; }
};

// Anything that only has a number
struct Parts {
    Index parts;
    Index count() const { return parts; }
    Index operator[](Index part) const { return part; }
};

// (outputs, inputs, taps) -> [block of outputs][tap][input, padded to whole blocks][output in the block], zeros where nothing is.
// `back` takes weights in the layout (inputs, outputs, taps), taps turned round: the convolution that takes a gradient back.
struct Packed : Aligned {
    Packed(const float* weight, Index outputs, Index inputs, Index taps = 1, bool back = false) : Aligned(size(outputs, inputs, taps)) {
        const Index block = active.kernels->block, padded = up(inputs);
        std::fill(data, data + size(outputs, inputs, taps), 0.0f);
        for (Index o = 0; o < outputs; o++)
            for (Index i = 0; i < inputs; i++)
                for (Index t = 0; t < taps; t++)
                    data[((o / block * taps + t) * padded + i) * block + o % block] =
                        back ? weight[(i * outputs + o) * taps + taps - 1 - t] : weight[(o * inputs + i) * taps + t];
    }
    static Index up(Index n) { return (n + active.kernels->block - 1) / active.kernels->block * active.kernels->block; }
    static Index size(Index outputs, Index inputs, Index taps) { return up(outputs) * up(inputs) * taps; }
};

// (channels, 9) -> [block of channels][9][channel in the block]; `back` turns the taps round
struct PackedDepthwise : Aligned {
    PackedDepthwise(const float* weight, Index channels, bool back = false) : Aligned(channels * 9) {
        const Index block = active.kernels->block;
        for (Index c = 0; c < channels; c++)
            for (Index i = 0; i < 9; i++) data[(c / block * 9 + i) * block + c % block] = weight[c * 9 + (back ? 8 - i : i)];
    }
};

template <class Body>
int guarded(Body body) {
    try { return body(); } catch (const std::bad_alloc&) { return 1; }
}

}  // namespace

// The instruction set in use ("AVX-512", "AVX2" or "plain")
EXPORT const char* film_instructions() { return active.kernels->name; }

// Uses another one; 0 if this machine has it
EXPORT int film_use(const char* name) {
    const Set set = supported(name);
    if (set.kernels) active = set;
    return set.kernels ? 0 : 1;
}

// weight (32, channels, 3, 3)
EXPORT int film_conv_in(Index threads, Index H, Index W, float* x, Index x_step, Index channels, float* y, Index y_step, const float* weight, float slope) {
    return guarded([&] {
        const Packed packed(weight, CHANNELS, channels == 1 ? 9 : channels, channels == 1 ? 1 : 9);
        const ConvIn p{{x, x_step}, {y, y_step}, H, W, channels, packed.data, slope};
        const Tiles tiles(H, W);
        return run_tasks(threads, tiles.count(), p.scratch(tiles.width()), [&](Index task, float* scratch) { active.kernels->conv_in(p, tiles[task], scratch); });
    });
}

// weight (2C, C), bias (2C), depthwise (2C, 3, 3) -> sums, float64: products (8, C/8, C/8), squared norms of q (C) and of k (C)
EXPORT int film_gram(Index threads, Index H, Index W, float* x, Index x_step, Index channels,
                     const float* weight, const float* bias, const float* depthwise, double* sums) {
    return guarded([&] {
        const Packed packed(weight, 2 * channels, channels);
        const PackedDepthwise packed_depthwise(depthwise, 2 * channels);
        const Gram p{{x, x_step}, H, W, channels, packed.data, bias, packed_depthwise.data};
        const Tiles tiles(H, W);
        const Index n = p.sums(), groups = std::min<Index>(tiles.count(), 256);  // of tiles that add up in order: the partial sums do not grow with the image
        std::vector<double> partial(n * groups);  // zeros
        run_tasks(threads, groups, p.scratch(tiles.width()), [&](Index group, float* scratch) {
            for (Index task = group * tiles.count() / groups; task < (group + 1) * tiles.count() / groups; task++)
                active.kernels->gram(p, tiles[task], partial.data() + group * n, scratch);
        });
        std::fill(sums, sums + n, 0.0);
        for (std::size_t i = 0; i < partial.size(); i++) sums[i % n] += partial[i];
        return 0;
    });
}

// value (C, C), mix (C, C), widen (8C, C), narrow (C, 4C), after (after_channels, C) or null; depthwise (channels, 3, 3)
EXPORT int film_block(Index threads, Index H, Index W, float* x, Index x_step, Index channels, float* y, Index y_step,
                      const float* value, const float* value_bias, const float* value_depthwise, const float* mix,
                      const float* widen, const float* widen_bias, const float* widen_depthwise, const float* narrow,
                      Index after_channels, const float* after, const float* after_bias) {
    return guarded([&] {
        const Index C = channels;
        const Packed value_(value, C, C), mix_(mix, C, C), widen_(widen, 8 * C, C), narrow_(narrow, C, 4 * C), after_(after, after_channels, C);
        const PackedDepthwise value_depthwise_(value_depthwise, C), widen_depthwise_(widen_depthwise, 8 * C);
        std::vector<float> padded_bias(Packed::up(after_channels));
        std::copy(after_bias, after_bias + after_channels, padded_bias.begin());
        const Block p{{x, x_step}, {y, y_step}, H, W, C, value_.data, value_bias, value_depthwise_.data, mix_.data,
                      widen_.data, widen_bias, widen_depthwise_.data, narrow_.data, after_channels ? after_.data : nullptr, padded_bias.data(), after_channels};
        const Tiles tiles(H, W);
        return run_tasks(threads, tiles.count(), p.scratch(tiles.width()), [&](Index task, float* scratch) { active.kernels->restormer(p, tiles[task], scratch); });
    });
}

// weight (32, 32), bias (32) -> tokens (32, rows, columns)
EXPORT int film_tokens(Index threads, Index W, float* x, Index x_step, Index rows, Index columns, const std::int64_t* pick_row, const std::int64_t* pick_column,
                       const float* weight, const float* bias, float* tokens) {
    return guarded([&] {
        const Packed packed(weight, CHANNELS, CHANNELS);
        const Tokens p{{x, x_step}, pick_row, pick_column, W, rows, columns, packed.data, bias, tokens};
        return run_tasks(threads, rows, p.scratch(), [&](Index row, float* scratch) { active.kernels->tokens(p, row, scratch); });
    });
}

namespace {

// The keys of all heads, or queries: weight (256, 256) times the rows of x (n, 256)
void project_tokens(Index threads, const float* x, Index n, const float* weight, float* y) {
    const Packed packed(weight, TOKEN, TOKEN);
    const Keys p{x, n, packed.data, y};
    run_tasks(threads, p.tasks(), p.scratch(), [&](Index task, float* scratch) { active.kernels->keys(p, task, scratch); });
}

// Queries (L, 256) as packed weights of their product with the keys, head by head, and each one's share in the mean: 0 for those that only fill a block
struct Queries {
    Index padded, blocks;
    Aligned packed, share;
    Queries(Index L, const float* query) : padded(Packed::up(L)), blocks(padded / active.kernels->block), packed(TOKEN * padded), share(HEADS * padded) {
        const Index block = active.kernels->block;
        std::fill_n(packed.data, TOKEN * padded, 0.0f);
        for (Index head = 0; head < HEADS; head++)
            for (Index l = 0; l < padded; l++) {
                share.data[head * padded + l] = l < L ? 1.0f / L : 0;
                if (l < L)
                    for (Index d = 0; d < HEAD_WIDTH; d++)
                        packed.data[(head * padded + l / block * block) * HEAD_WIDTH + d * block + l % block] = query[l * TOKEN + head * HEAD_WIDTH + d];
            }
    }
};

// weights (8, N): each head's attention, averaged over the queries; pooled (8, 256): the tokens by these weights
void pool_tokens(Index threads, Index N, const float* tokens, const float* keys, const Queries& queries, float* weights, float* pooled) {
    const Index groups = std::min<Index>(4, queries.blocks);
    Aligned parts(HEADS * groups * N);
    const Weights w{keys, N, queries.packed.data, queries.share.data, queries.blocks, groups, parts.data};
    run_tasks(threads, w.tasks(), w.scratch(active.kernels->block), [&](Index task, float* scratch) { active.kernels->weights(w, task, scratch); });
    for (Index head = 0; head < HEADS; head++)
        for (Index n = 0; n < N; n++) {
            float sum = 0;
            for (Index g = 0; g < groups; g++) sum += parts.data[(head * groups + g) * N + n];
            weights[head * N + n] = sum;
        }
    Aligned sums(chunks(N) * HEADS * TOKEN);
    const Pool p{tokens, weights, N, sums.data};
    parallel(threads, chunks(N), [&](Index chunk, Index) { active.kernels->pool(p, chunk); });
    std::vector<double> total(HEADS * TOKEN);
    for (Index i = 0; i < chunks(N) * HEADS * TOKEN; i++) total[i % (HEADS * TOKEN)] += sums.data[i];
    std::copy(total.begin(), total.end(), pooled);
}

}  // namespace

// What text makes of image: tokens (N, 256), text (L, 256), projections of queries, keys and values (768, 256) with bias (768), output projection (256, 256)
// with bias -> gate (256). `room` takes the keys of all heads: 256 N floats.
EXPORT int film_gate(Index threads, Index N, Index L, const float* tokens, const float* text, const float* in_weight, const float* in_bias,
                     const float* out_weight, const float* out_bias, float* room, float* gate) {
    return guarded([&] {
        const Index block = active.kernels->block;
        project_tokens(threads, tokens, N, in_weight + TOKEN * TOKEN, room);
        Aligned projected(TOKEN * L), query(TOKEN * L), weights(HEADS * N), pooled(HEADS * TOKEN);
        project_tokens(threads, text, L, in_weight, projected.data);
        for (Index l = 0; l < L; l++)
            for (Index c = 0; c < TOKEN; c++)
                query.data[l * TOKEN + c] = (projected.data[c / block * block * L + l * block + c % block] + in_bias[c]) * float(1 / std::sqrt(double(HEAD_WIDTH)));
        pool_tokens(threads, N, tokens, room, Queries(L, query.data), weights.data, pooled.data);

        double answer[TOKEN], mean[TOKEN], sum = 0;
        for (Index o = 0; o < TOKEN; o++) {
            const float *from = pooled.data + o / HEAD_WIDTH * TOKEN, *weight = in_weight + (2 * TOKEN + o) * TOKEN;
            answer[o] = in_bias[2 * TOKEN + o];
            for (Index i = 0; i < TOKEN; i++) answer[o] += double(weight[i]) * from[i];
        }
        for (Index o = 0; o < TOKEN; o++) {
            mean[o] = out_bias[o];
            for (Index i = 0; i < TOKEN; i++) mean[o] += out_weight[o * TOKEN + i] * answer[i];
            sum += std::abs(mean[o]);
        }
        for (Index o = 0; o < TOKEN; o++) gate[o] = mean[o] / std::max(sum, 1e-12);
        return 0;
    });
}

// gated, from_gated, from_x (32, 32); biases (32); tokens (32, rows, columns), gate (256)
EXPORT int film_guided(Index threads, Index H, Index W, float* x, Index x_step, float* y, Index y_step, Index rows, Index columns,
                       const float* tokens, const float* gate, const std::int64_t* show_row, const std::int64_t* show_column,
                       const float* gated, const float* gated_bias, float gated_slope,
                       const float* from_gated, const float* from_x, const float* bias, float slope) {
    return guarded([&] {
        const Packed gated_(gated, CHANNELS, CHANNELS), from_gated_(from_gated, CHANNELS, CHANNELS), from_x_(from_x, CHANNELS, CHANNELS);
        const Guided p{{x, x_step}, {y, y_step}, H, W, tokens, gate, show_row, show_column, rows, columns,
                       gated_.data, gated_bias, gated_slope, from_gated_.data, from_x_.data, bias, slope};
        const Bands bands(H);
        return run_tasks(threads, bands.count(), p.scratch(),
                         [&](Index band, float* scratch) { active.kernels->guided(p, bands[band].first, bands[band].last, scratch); });
    });
}

// ---- training ------------------------------------------------------------------------------------------------------------------

namespace {

// Runs a gradient phase on the tiles and adds up their sums, in the order of the tiles
template <class Tiles, class Run>
std::vector<double> sum_tiles(Index threads, const Tiles& tiles, Index n, Index scratch, Run run) {
    std::vector<float> partial(n * tiles.count());  // zeros
    run_tasks(threads, tiles.count(), scratch, [&](Index task, float* own) { run(tiles[task], partial.data() + task * n, own); });
    std::vector<double> total(n);
    for (std::size_t i = 0; i < partial.size(); i++) total[i % n] += partial[i];
    return total;
}

// [block of outputs][input, `padded` of them][output in the block] -> (outputs, inputs)
void unpack(const double* sums, float* gradient, Index outputs, Index inputs, Index padded) {
    const Index block = active.kernels->block;
    for (Index o = 0; o < outputs; o++)
        for (Index i = 0; i < inputs; i++) gradient[o * inputs + i] = sums[(o / block * padded + i) * block + o % block];
}

void unpack_depthwise(const double* sums, float* gradient, Index channels) { unpack(sums, gradient, channels, 9, 9); }

}  // namespace

// dx may be null with 1 channel. d_weight as weight, d_slope (1)
EXPORT int film_conv_in_gradient(Index threads, Index H, Index W, float* x, Index x_step, Index channels, float* dy, Index dy_step, float* dx, Index dx_step,
                                 const float* weight, float slope, float* d_weight, float* d_slope) {
    return guarded([&] {
        const bool first = channels == 1;
        const Packed packed(weight, CHANNELS, first ? 9 : channels, first ? 1 : 9), back(weight, channels, CHANNELS, 9, true);
        const ConvInGradient p{{x, x_step}, {dy, dy_step}, {dx, dx_step}, H, W, channels, packed.data, back.data, slope};
        const Tiles tiles(H, W);
        const Index block = active.kernels->block;
        const auto sums = sum_tiles(threads, tiles, p.sums(block), p.scratch(tiles.width()),
                                    [&](Tile tile, float* sums, float* scratch) { active.gradients->conv_in(p, tile, sums, scratch); });
        if (first) unpack(sums.data(), d_weight, CHANNELS, 9, Packed::up(9));
        else
            for (Index tap = 0; tap < 9; tap++) {
                std::vector<float> one(CHANNELS * CHANNELS);
                unpack(sums.data() + tap * CHANNELS * CHANNELS, one.data(), CHANNELS, CHANNELS, CHANNELS);
                for (Index i = 0; i < CHANNELS * CHANNELS; i++) d_weight[i * 9 + tap] = one[i];
            }
        double total = 0;
        for (Index i = 0; i < block; i++) total += sums[p.weights(block) + i];
        *d_slope = total;
        return 0;
    });
}

// Weights as in film_block. dx1: the gradient where MDTA's output is added; gradients of weights have the weights' layouts
EXPORT int film_feed_forward_gradient(Index threads, Index H, Index W, float* x, Index x_step, Index channels, float* dy, Index dy_step, float* dx1, Index dx1_step,
                                      const float* value, const float* value_bias, const float* value_depthwise, const float* mix,
                                      const float* widen, const float* widen_bias, const float* widen_depthwise, const float* narrow,
                                      float* d_mix, float* d_widen, float* d_widen_bias, float* d_widen_depthwise, float* d_narrow) {
    return guarded([&] {
        const Index C = channels;
        const Packed value_(value, C, C), mix_(mix, C, C), widen_(widen, 8 * C, C), narrow_back(narrow, 4 * C, C, 1, true), widen_back(widen, C, 8 * C, 1, true);
        const PackedDepthwise value_depthwise_(value_depthwise, C), widen_depthwise_(widen_depthwise, 8 * C), widen_depthwise_back(widen_depthwise, 8 * C, true);
        const FeedForwardGradient p{{x, x_step}, {dy, dy_step}, {dx1, dx1_step}, H, W, C, value_.data, value_bias, value_depthwise_.data, mix_.data,
                                    widen_.data, widen_bias, widen_depthwise_.data, narrow_back.data, widen_back.data, widen_depthwise_back.data};
        const Tiles tiles(H, W);
        const auto sums = sum_tiles(threads, tiles, p.sums(), p.scratch(tiles.width()),
                                    [&](Tile tile, float* sums, float* scratch) { active.gradients->feed_forward(p, tile, sums, scratch); });
        unpack(sums.data(), d_widen, 8 * C, C, C);
        std::copy_n(sums.data() + p.bias_at(), 8 * C, d_widen_bias);
        unpack_depthwise(sums.data() + p.depthwise_at(), d_widen_depthwise, 8 * C);
        unpack(sums.data() + p.narrow_at(), d_narrow, C, 4 * C, 4 * C);
        unpack(sums.data() + p.mix_at(), d_mix, C, C, C);
        return 0;
    });
}

// From dx1 to dx by way of the values, and their weights' gradients
EXPORT int film_values_gradient(Index threads, Index H, Index W, float* x, Index x_step, Index channels, float* dx1, Index dx1_step, float* dx, Index dx_step,
                                const float* value, const float* value_bias, const float* value_depthwise, const float* mix,
                                float* d_value, float* d_value_bias, float* d_value_depthwise) {
    return guarded([&] {
        const Index C = channels;
        const Packed value_(value, C, C), back(value, C, C, 1, true), mix_back(mix, C, C, 1, true);
        const PackedDepthwise depthwise(value_depthwise, C), depthwise_back(value_depthwise, C, true);
        const ProjectionGradient p{{x, x_step}, {dx1, dx1_step}, {dx, dx_step}, H, W, C, true, value_.data, value_bias, depthwise.data, back.data, depthwise_back.data,
                                   mix_back.data, nullptr, nullptr, nullptr};
        const Tiles tiles(H, W);
        const auto sums = sum_tiles(threads, tiles, p.sums(), p.scratch(tiles.width()),
                                    [&](Tile tile, float* sums, float* scratch) { active.gradients->projection(p, tile, sums, scratch); });
        unpack(sums.data(), d_value, C, C, C);
        std::copy_n(sums.data() + p.bias_at(), C, d_value_bias);
        unpack_depthwise(sums.data() + p.depthwise_at(), d_value_depthwise, C);
        return 0;
    });
}

// From the gradients of film_gram's sums (float64, same layout) to dx, and the weights' gradients
EXPORT int film_gram_gradient(Index threads, Index H, Index W, float* x, Index x_step, Index channels, const double* d_sums, float* dx, Index dx_step,
                              const float* weight, const float* bias, const float* depthwise, float* d_weight, float* d_bias, float* d_depthwise) {
    return guarded([&] {
        const Index C = channels, D = C / HEADS;
        const Packed packed(weight, 2 * C, C), back(weight, C, 2 * C, 1, true);
        const PackedDepthwise depthwise_(depthwise, 2 * C), depthwise_back(depthwise, 2 * C, true);
        std::vector<float> products(C * D), transposed(C * D), squares(2 * C);
        for (Index c = 0; c < C; c++)
            for (Index j = 0; j < D; j++) products[c * D + j] = transposed[(c / D * D + j) * D + c % D] = d_sums[c * D + j];
        for (Index i = 0; i < 2 * C; i++) squares[i] = 2 * d_sums[C * D + i];
        const ProjectionGradient p{{x, x_step}, {nullptr, 0}, {dx, dx_step}, H, W, C, false, packed.data, bias, depthwise_.data, back.data, depthwise_back.data,
                                   nullptr, products.data(), transposed.data(), squares.data()};
        const Tiles tiles(H, W);
        const auto sums = sum_tiles(threads, tiles, p.sums(), p.scratch(tiles.width()),
                                    [&](Tile tile, float* sums, float* scratch) { active.gradients->projection(p, tile, sums, scratch); });
        unpack(sums.data(), d_weight, 2 * C, C, C);
        std::copy_n(sums.data() + p.bias_at(), 2 * C, d_bias);
        unpack_depthwise(sums.data() + p.depthwise_at(), d_depthwise, 2 * C);
        return 0;
    });
}

// weight (32, 32), d_tokens (32, rows, columns)
EXPORT int film_tokens_gradient(Index threads, Index H, Index W, float* x, Index x_step, float* dx, Index dx_step, Index rows, Index columns,
                                const std::int64_t* pick_row, const std::int64_t* pick_column, const float* weight, const float* d_tokens,
                                float* d_weight, float* d_bias) {
    return guarded([&] {
        const Packed back(weight, CHANNELS, CHANNELS, 1, true);
        const TokensGradient p{{x, x_step}, {dx, dx_step}, pick_row, pick_column, H, W, rows, columns, back.data, d_tokens};
        const Bands bands(H);
        const auto sums = sum_tiles(threads, bands, p.sums(), p.scratch(), [&](Bands::Band band, float* sums, float* scratch) {
            active.gradients->tokens(p, band.first, band.last, sums, scratch);
        });
        unpack(sums.data(), d_weight, CHANNELS, CHANNELS, CHANNELS);
        std::copy_n(sums.data() + CHANNELS * CHANNELS, CHANNELS, d_bias);
        return 0;
    });
}

// tokens (N, 256), query (L, 256) scaled, key_weight (256, 256) -> weights (8, N), which the gradient takes again, and pooled (8, 256)
EXPORT int film_pool(Index threads, Index N, Index L, const float* tokens, const float* query, const float* key_weight, float* weights, float* pooled) {
    return guarded([&] {
        Aligned keys(TOKEN * N);
        project_tokens(threads, tokens, N, key_weight, keys.data);
        pool_tokens(threads, N, tokens, keys.data, Queries(L, query), weights, pooled);
        return 0;
    });
}

EXPORT int film_pool_gradient(Index threads, Index N, Index L, const float* tokens, const float* query, const float* key_weight, const float* weights,
                              const float* d_pooled, float* d_tokens, float* d_query, float* d_key_weight) {
    return guarded([&] {
        const Index block = active.kernels->block;
        Aligned keys(TOKEN * N), d_keys(TOKEN * N), d_weights(HEADS * N);
        project_tokens(threads, tokens, N, key_weight, keys.data);
        const WeightsGradient w{tokens, d_pooled, N, d_weights.data};
        parallel(threads, chunks(N), [&](Index chunk, Index) { active.gradients->weights(w, chunk); });

        const Queries queries(L, query);
        Aligned query_back(TOKEN * queries.padded), d_packed(TOKEN * queries.padded);
        std::vector<float> one(block * HEAD_WIDTH);  // a block of queries of one head, (32, block): their packed form is the transpose
        for (Index i = 0; i < HEADS * queries.blocks; i++) {
            std::copy_n(queries.packed.data + i * block * HEAD_WIDTH, block * HEAD_WIDTH, one.begin());
            const Packed back(one.data(), HEAD_WIDTH, block);
            std::copy_n(back.data, block * HEAD_WIDTH, query_back.data + i * block * HEAD_WIDTH);
        }
        const ScoresGradient s{keys.data, N, queries.packed.data, queries.share.data, query_back.data, queries.blocks, d_weights.data, d_keys.data, d_packed.data};
        run_tasks(threads, HEADS, s.scratch(block), [&](Index head, float* scratch) { active.gradients->scores(s, head, scratch); });
        for (Index l = 0; l < L; l++)
            for (Index c = 0; c < TOKEN; c++) {
                const Index head = c / HEAD_WIDTH, d = c % HEAD_WIDTH;
                d_query[l * TOKEN + c] = d_packed.data[(head * queries.padded + l / block * block) * HEAD_WIDTH + d * block + l % block];
            }

        const Packed back(key_weight, TOKEN, TOKEN, 1, true);
        const KeysGradient k{tokens, d_keys.data, back.data, weights, d_pooled, N, std::min<Index>(16, chunks(N)), d_tokens};
        const auto sums = sum_tiles(threads, Parts{k.groups}, k.sums(), k.scratch(), [&](Index group, float* sums, float* scratch) {
            active.gradients->keys(k, group, sums, scratch);
        });
        unpack(sums.data(), d_key_weight, TOKEN, TOKEN, TOKEN);
        return 0;
    });
}

// Weights as in film_guided; slopes' gradients are d_slopes (2): the outer and the gated one
EXPORT int film_guided_gradient(Index threads, Index H, Index W, float* x, Index x_step, float* dy, Index dy_step, float* dx, Index dx_step, Index rows, Index columns,
                                const float* tokens, const float* gate, const std::int64_t* show_row, const std::int64_t* show_column,
                                const float* gated, const float* gated_bias, float gated_slope,
                                const float* from_gated, const float* from_x, const float* bias, float slope,
                                float* d_tokens, float* d_gate, float* d_gated, float* d_gated_bias, float* d_from_gated, float* d_from_x, float* d_bias, float* d_slopes) {
    return guarded([&] {
        const Index C = CHANNELS, block = active.kernels->block;
        const Packed gated_(gated, C, C), from_gated_(from_gated, C, C), from_x_(from_x, C, C);
        const Packed gated_back(gated, C, C, 1, true), from_gated_back(from_gated, C, C, 1, true), from_x_back(from_x, C, C, 1, true);
        const Guided of{{x, x_step}, {nullptr, 0}, H, W, tokens, gate, show_row, show_column, rows, columns,
                        gated_.data, gated_bias, gated_slope, from_gated_.data, from_x_.data, bias, slope};
        const GuidedGradient p{of, {dy, dy_step}, {dx, dx_step}, gated_back.data, from_gated_back.data, from_x_back.data, d_tokens};
        const Bands bands(rows);
        const auto sums = sum_tiles(threads, bands, p.sums(block), p.scratch(), [&](Bands::Band band, float* sums, float* scratch) {
            active.gradients->guided(p, band.first, band.last, sums, scratch);
        });
        unpack(sums.data(), d_from_x, C, C, C);
        unpack(sums.data() + p.from_gated_at(), d_from_gated, C, C, C);
        unpack(sums.data() + p.gated_at(), d_gated, C, C, C);
        std::copy_n(sums.data() + p.bias_at(), C, d_bias);
        std::copy_n(sums.data() + p.gated_bias_at(), C, d_gated_bias);
        std::copy_n(sums.data() + p.gate_at(), TOKEN, d_gate);
        for (Index i = 0; i < 2; i++) {
            double total = 0;
            for (Index lane = 0; lane < block; lane++) total += sums[p.slope_at() + i * block + lane];
            d_slopes[i] = total;
        }
        return 0;
    });
}
