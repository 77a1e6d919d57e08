// The C interface of the native kernels (no torch headers: Python passes pointers), the choice of instruction set, and the threads.
//
// All tensors are contiguous float32 in PyTorch's layouts, except feature maps, which are channels-last with `step` floats from pixel to pixel.
// Every function returns 0, or 1 if memory for its scratch is lacking.
#include "film.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
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

const Kernels* supported(const char* name) {
#ifdef FILM_X86
    if (!std::strcmp(name, "AVX-512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) return &avx512_kernels;
    if (!std::strcmp(name, "AVX2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2_kernels;
#endif
    return std::strcmp(name, plain_kernels.name) ? nullptr : &plain_kernels;
}

const Kernels* best() {
    for (const char* name : {"AVX-512", "AVX2"})
        if (const Kernels* kernels = supported(name)) return kernels;
    return &plain_kernels;
}

const Kernels* active = best();

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

// (outputs, inputs, taps) -> [block of outputs][tap][input, padded to whole blocks][output in the block], zeros where nothing is
struct Packed : Aligned {
    Packed(const float* weight, Index outputs, Index inputs, Index taps = 1) : Aligned(size(outputs, inputs, taps)) {
        const Index block = active->block, padded = up(inputs);
        std::fill(data, data + size(outputs, inputs, taps), 0.0f);
        for (Index o = 0; o < outputs; o++)
            for (Index i = 0; i < inputs; i++)
                for (Index t = 0; t < taps; t++)
                    data[((o / block * taps + t) * padded + i) * block + o % block] = weight[(o * inputs + i) * taps + t];
    }
    static Index up(Index n) { return (n + active->block - 1) / active->block * active->block; }
    static Index size(Index outputs, Index inputs, Index taps) { return up(outputs) * up(inputs) * taps; }
};

// (channels, 9) -> [block of channels][9][channel in the block]
std::unique_ptr<Aligned> pack_depthwise(const float* weight, Index channels) {
    auto packed = std::make_unique<Aligned>(channels * 9);
    const Index block = active->block;
    for (Index c = 0; c < channels; c++)
        for (Index i = 0; i < 9; i++) packed->data[(c / block * 9 + i) * block + c % block] = weight[c * 9 + i];
    return packed;
}

template <class Body>
int guarded(Body body) {
    try { return body(); } catch (const std::bad_alloc&) { return 1; }
}

}  // namespace

// The instruction set in use ("AVX-512", "AVX2" or "plain")
EXPORT const char* film_instructions() { return active->name; }

// Uses another one; 0 if this machine has it
EXPORT int film_use(const char* name) {
    const Kernels* kernels = supported(name);
    if (kernels) active = kernels;
    return kernels ? 0 : 1;
}

// weight (32, channels, 3, 3)
EXPORT int film_conv_in(Index threads, Index H, Index W, float* x, Index x_step, Index channels, float* y, Index y_step, const float* weight, float slope) {
    return guarded([&] {
        const Packed packed(weight, CHANNELS, channels == 1 ? 9 : channels, channels == 1 ? 1 : 9);
        const ConvIn p{{x, x_step}, {y, y_step}, H, W, channels, packed.data, slope};
        const Tiles tiles(H, W);
        return run_tasks(threads, tiles.count(), p.scratch(tiles.width()), [&](Index task, float* scratch) { active->conv_in(p, tiles[task], scratch); });
    });
}

// weight (2C, C), bias (2C), depthwise (2C, 3, 3) -> sums, float64: products (8, C/8, C/8), squared norms of q (C) and of k (C)
EXPORT int film_gram(Index threads, Index H, Index W, float* x, Index x_step, Index channels,
                     const float* weight, const float* bias, const float* depthwise, double* sums) {
    return guarded([&] {
        const Packed packed(weight, 2 * channels, channels);
        const auto packed_depthwise = pack_depthwise(depthwise, 2 * channels);
        const Gram p{{x, x_step}, H, W, channels, packed.data, bias, packed_depthwise->data};
        const Tiles tiles(H, W);
        const Index n = p.sums_per_tile();
        std::vector<double> partial(n * tiles.count());
        run_tasks(threads, tiles.count(), p.scratch(tiles.width()),
                  [&](Index task, float* scratch) { active->gram(p, tiles[task], partial.data() + task * n, scratch); });
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
        const auto value_depthwise_ = pack_depthwise(value_depthwise, C), widen_depthwise_ = pack_depthwise(widen_depthwise, 8 * C);
        std::vector<float> padded_bias(Packed::up(after_channels));
        std::copy(after_bias, after_bias + after_channels, padded_bias.begin());
        const Block p{{x, x_step}, {y, y_step}, H, W, C, value_.data, value_bias, value_depthwise_->data, mix_.data,
                      widen_.data, widen_bias, widen_depthwise_->data, narrow_.data, after_channels ? after_.data : nullptr, padded_bias.data(), after_channels};
        const Tiles tiles(H, W);
        return run_tasks(threads, tiles.count(), p.scratch(tiles.width()), [&](Index task, float* scratch) { active->restormer(p, tiles[task], scratch); });
    });
}

// weight (32, 32), bias (32) -> tokens (32, rows, columns)
EXPORT int film_tokens(Index threads, Index W, float* x, Index x_step, Index rows, Index columns, const std::int64_t* pick_row, const std::int64_t* pick_column,
                       const float* weight, const float* bias, float* tokens) {
    return guarded([&] {
        const Packed packed(weight, CHANNELS, CHANNELS);
        const Tokens p{{x, x_step}, pick_row, pick_column, W, rows, columns, packed.data, bias, tokens};
        return run_tasks(threads, rows, p.scratch(), [&](Index row, float* scratch) { active->tokens(p, row, scratch); });
    });
}

// What text makes of image: tokens (N, 256), text (L, 256), projections of queries, keys and values (768, 256) with bias (768), output projection (256, 256)
// with bias -> gate (256). `room` takes the keys of all heads: 256 N floats.
EXPORT int film_gate(Index threads, Index N, Index L, const float* tokens, const float* text, const float* in_weight, const float* in_bias,
                     const float* out_weight, const float* out_bias, float* room, float* gate) {
    return guarded([&] {
        const Index block = active->block, padded = Packed::up(L), groups = std::min<Index>(4, padded / block);
        auto project = [&](const float* rows, Index n, const float* weight, float* to) {
            const Packed packed(weight, TOKEN, TOKEN);
            const Keys p{rows, n, packed.data, to};
            run_tasks(threads, p.tasks(), p.scratch(), [&](Index task, float* scratch) { active->keys(p, task, scratch); });
        };
        project(tokens, N, in_weight + TOKEN * TOKEN, room);

        // queries as the packed weights of a product with the keys; text tokens that only fill a block have share 0
        Aligned queries(TOKEN * L), packed(TOKEN * padded), share(HEADS * padded), weights(HEADS * groups * N), pooled(HEADS * TOKEN);
        project(text, L, in_weight, queries.data);
        std::fill_n(packed.data, TOKEN * padded, 0.0f);
        for (Index head = 0; head < HEADS; head++) {
            for (Index d = 0; d < HEAD_WIDTH; d++)
                for (Index l = 0; l < L; l++) {
                    const float query = queries.data[(head * HEAD_WIDTH + d / block * block) * L + l * block + d % block] + in_bias[head * HEAD_WIDTH + d];
                    packed.data[((head * padded + l / block * block) * HEAD_WIDTH) + d * block + l % block] = query * float(1 / std::sqrt(double(HEAD_WIDTH)));
                }
            for (Index l = 0; l < padded; l++) share.data[head * padded + l] = l < L ? 1.0f / L : 0;
        }
        const Weights w{room, N, packed.data, share.data, padded / block, groups, weights.data};
        run_tasks(threads, w.tasks(), w.scratch(block), [&](Index task, float* scratch) { active->weights(w, task, scratch); });
        for (Index head = 0; head < HEADS; head++) {  // groups are added up where the heads' results then lie one after the other
            float* to = weights.data + head * N;
            const float* from = weights.data + head * groups * N;
            for (Index n = 0; n < N; n++) {
                float sum = 0;
                for (Index g = 0; g < groups; g++) sum += from[g * N + n];
                to[n] = sum;
            }
        }
        const Pool q{tokens, weights.data, N, pooled.data};
        parallel(threads, TOKEN / block, [&](Index slice, Index) { active->pool(q, slice); });

        double answer[TOKEN], sum = 0;
        for (Index o = 0; o < TOKEN; o++) {
            const float *from = pooled.data + o / HEAD_WIDTH * TOKEN, *weight = in_weight + (2 * TOKEN + o) * TOKEN;
            answer[o] = in_bias[2 * TOKEN + o];
            for (Index i = 0; i < TOKEN; i++) answer[o] += double(weight[i]) * from[i];
        }
        double mean[TOKEN];
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
        const Index bands = (H + 15) / 16;
        return run_tasks(threads, bands, p.scratch(), [&](Index band, float* scratch) { active->guided(p, band * H / bands, (band + 1) * H / bands, scratch); });
    });
}
