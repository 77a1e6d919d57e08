// The arithmetic of the network, compiled once for each instruction set (see setup.py): FILM_KERNELS names the table it fills.
//
// Vectors run along channels. Rows inside a task are "blocked", [channel block][pixel][BLOCK], so that every product reads and writes
// contiguous, aligned memory whatever the image's size, and the only inner loop that matters, `product_tile`, has constant strides.
//
// Nothing here may use the standard library's inline functions: the linker could keep the copy compiled for the newest instruction set.
#include "film.h"

#ifndef FILM_KERNELS
#define FILM_KERNELS plain_kernels
#define FILM_NAME "plain"
#endif

namespace film {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 12;  // TILE pixels x 2 vectors of sums fill the registers
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE = 12;
#else
constexpr int LANES = 4, TILE = 6;
#endif
constexpr int BLOCK = 2 * LANES;

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int I __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
INLINE void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
INLINE V splat(float x) { return x - V{}; }
INLINE V larger(V a, V b) { return a > b ? a : b; }
INLINE V prelu(V x, float slope) { return x > 0 ? x : slope * x; }
INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
INLINE Index larger(Index a, Index b) { return a > b ? a : b; }
INLINE void clear(float* p, Index n) { __builtin_memset(p, 0, n * sizeof(float)); }

// the sum of all lanes, in every lane
INLINE V sum_lanes(V v) {
#ifdef __clang__
#define ROTATED(...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define ROTATED(...) __builtin_shuffle(v, I{__VA_ARGS__})
#endif
#if defined(__AVX512F__)
    v += ROTATED(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += ROTATED(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += ROTATED(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += ROTATED(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__AVX2__)
    v += ROTATED(4, 5, 6, 7, 0, 1, 2, 3);
    v += ROTATED(2, 3, 0, 1, 6, 7, 4, 5);
    v += ROTATED(1, 0, 3, 2, 5, 4, 7, 6);
#else
    v += ROTATED(2, 3, 0, 1);
    v += ROTATED(1, 0, 3, 2);
#endif
#undef ROTATED
    return v;
}

// e^x for x <= 0 (and small x > 0): 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2], within 2 units in the last place
INLINE V exp(V x) {
    x = x < -87.0f ? splat(-87.0f) : x;  // NaN stays NaN
    V shifted = x * 1.442695041f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits
    V n = shifted - 12582912.0f;
    V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    V p = splat(1.38145957e-3f);
    p = p * r + 8.36871718e-3f;
    p = p * r + 4.16683881e-2f;
    p = p * r + 1.66665206e-1f;
    p = p * r + 0.499999934f;
    p = p * r * r + r + 1.0f;
    return p * (V)(((I)shifted << 23) + 0x3f800000);  // casts between vectors keep the bits
}

// x Phi(x) = x / 2 + t R(t), t = x^2, R(t) = erf(sqrt(t / 2)) / (2 sqrt(t)). R is a rational function fitted over |x| <= 5.6, where Phi is
// then off by 1e-8 at most; beyond it Phi is 0 or 1 in float32. All coefficients are positive: no cancellation.
INLINE V gelu(V x) {
    V t = x * x;
    V p = splat(2.2145662e-08f), q = splat(1.18021111e-06f);
    p = p * t + 6.35638444e-06f;  q = q * t + 7.50980264e-05f;
    p = p * t + 1.73839826e-04f;  q = q * t + 1.91291744e-03f;
    p = p * t + 4.70719341e-03f;  q = q * t + 2.89395054e-02f;
    p = p * t + 3.43751138e-02f;  q = q * t + 2.52831347e-01f;
    p = p * t + 3.98942222e-01f;  q = q * t + 1.0f;
    V inside = t * (p / q) + 0.5f * x;
    return t > 5.6f * 5.6f ? (x > 0 ? x : V{}) : inside;  // NaN stays NaN: the comparison is false
}

// ---- products ------------------------------------------------------------------------------------------------------------------

struct Output { float* data; Index pixel, block; };       // floats from a pixel (a block) to the next
struct Initial { const float* data; Index pixel, block; };  // a bias has pixel step 0

INLINE Output blocked(float* data, Index width) { return {data, BLOCK, width * BLOCK}; }
INLINE Output to_map(float* data, Index step) { return {data, step, BLOCK}; }
INLINE Initial from_map(const float* data, Index step) { return {data, step, BLOCK}; }
INLINE Initial bias(const float* data) { return {data, 0, BLOCK}; }

// y[p][o] = initial[p][o] + sum over segments s and k < BLOCK of x[segments[s] + p BLOCK + k] weight[s][k][o], for P pixels and one block of outputs.
// A segment is a block of input channels (of a neighbour, in a 3x3 convolution).
template <int P>
void product_tile(const float* x, const Index* segments, int n_segments, const float* weight,
                  const float* initial, Index initial_step, float* y, Index y_step) {
    V left[P], right[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
        left[p] = load(initial + p * initial_step);
        right[p] = load(initial + p * initial_step + LANES);
    }
    for (int s = 0; s < n_segments; s++) {
        const float* from = x + segments[s];
#pragma GCC unroll 4
        for (int k = 0; k < BLOCK; k++, weight += BLOCK) {
            V w_left = load(weight), w_right = load(weight + LANES);
#pragma GCC unroll 16
            for (int p = 0; p < P; p++) {
                V value = splat(from[p * BLOCK + k]);
                left[p] += value * w_left;
                right[p] += value * w_right;
            }
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; p++) {
        store(y + p * y_step, left[p]);
        store(y + p * y_step + LANES, right[p]);
    }
}

using ProductTile = void (*)(const float*, const Index*, int, const float*, const float*, Index, float*, Index);
constexpr ProductTile product_tiles[] = {
    nullptr, product_tile<1>, product_tile<2>, product_tile<3>, product_tile<4>, product_tile<5>, product_tile<6>,
#if defined(__AVX512F__) || defined(__aarch64__)
    product_tile<7>, product_tile<8>, product_tile<9>, product_tile<10>, product_tile<11>, product_tile<12>,
#endif
};

// All outputs [first, last) (in blocks) for a row of pixels, cut into tiles of nearly equal size
void product(Index pixels, const float* x, const Index* segments, int n_segments, const float* weight, Initial initial, Output y, int first, int last) {
    if (pixels <= 0) return;
    Index tiles = (pixels + TILE - 1) / TILE, size = pixels / tiles, longer = pixels % tiles;
    for (int block = first; block < last; block++) {
        const float* w = weight + Index(block) * n_segments * BLOCK * BLOCK;
        const float* from = initial.data + block * initial.block;
        float* to = y.data + block * y.block;
        for (Index i = 0, p = 0; i < tiles; i++) {
            Index n = size + (i < longer);
            product_tiles[n](x + p * BLOCK, segments, n_segments, w, from + p * initial.pixel, initial.pixel, to + p * y.pixel, y.pixel);
            p += n;
        }
    }
}

// Where the blocks of a blocked row are
template <int CHANNELS_IN>
struct Segments {
    static constexpr int count = CHANNELS_IN / BLOCK;
    Index at[count];
    explicit Segments(Index width) { for (int s = 0; s < count; s++) at[s] = s * width * BLOCK; }
};

// 1x1 convolution of a blocked row (of `width` pixels' room)
template <int CHANNELS_IN>
INLINE void conv1x1(Index pixels, const float* x, Index width, const float* weight, Initial initial, Output y, int first, int last) {
    Segments<CHANNELS_IN> segments(width);
    product(pixels, x, segments.at, segments.count, weight, initial, y, first, last);
}

// ---- rows ----------------------------------------------------------------------------------------------------------------------

// Asks for a row of a map that is needed next: rows of a tile are far apart in memory, so the processor does not guess them
void prefetch(const float* x, Index step, Index pixels, int channels) {
    for (Index p = 0; p < pixels; p++, x += step)
        for (int c = 0; c < channels; c += 16) __builtin_prefetch(x + c);
}

// (x - mean) / deviation over the channels of each pixel (the weight and bias of the normalisation are folded into what follows), as a blocked row
template <int C>
void normalise(const float* x, Index step, Index pixels, float* y, Index width) {
    for (Index p = 0; p < pixels; p++, x += step, y += BLOCK) {
        V v[C / LANES], sum = V{}, squares = V{};
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) { v[i] = load(x + i * LANES); sum += v[i]; }
        V mean = sum_lanes(sum) * (1.0f / C);
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) { v[i] -= mean; squares += v[i] * v[i]; }
        V scale = splat(1.0f / __builtin_sqrtf(sum_lanes(squares)[0] * (1.0f / C) + 1e-5f));
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) store(y + (i / 2) * width * BLOCK + (i % 2) * LANES, v[i] * scale);
    }
}

void copy_blocked(const float* x, Index step, Index pixels, int channels, float* y, Index width) {
    for (Index p = 0; p < pixels; p++, x += step, y += BLOCK)
        for (int c = 0; c < channels; c += LANES) store(y + (c / BLOCK) * width * BLOCK + c % BLOCK, load(x + c));
}

// y[j][i] = x[i][j], four rows and columns at a time
void transpose(const float* x, Index x_step, Index rows, Index columns, float* y, Index y_step) {
    typedef float Four __attribute__((vector_size(16)));
    typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));
    typedef int Order __attribute__((vector_size(16)));
#ifdef __clang__
#define MIXED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIXED(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif
    const Index whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (Index j = 0; j < whole_columns; j += 4)  // columns outside: at most four rows of y are written at a time
        for (Index i = 0; i < whole_rows; i += 4) {
            Four in[4], out[4];
            for (int k = 0; k < 4; k++) in[k] = *reinterpret_cast<const UnalignedFour*>(x + (i + k) * x_step + j);
            const Four a = MIXED(in[0], in[1], 0, 4, 1, 5), b = MIXED(in[2], in[3], 0, 4, 1, 5);
            const Four c = MIXED(in[0], in[1], 2, 6, 3, 7), d = MIXED(in[2], in[3], 2, 6, 3, 7);
            out[0] = MIXED(a, b, 0, 1, 4, 5), out[1] = MIXED(a, b, 2, 3, 6, 7);
            out[2] = MIXED(c, d, 0, 1, 4, 5), out[3] = MIXED(c, d, 2, 3, 6, 7);
            for (int k = 0; k < 4; k++) *reinterpret_cast<UnalignedFour*>(y + (j + k) * y_step + i) = out[k];
        }
#undef MIXED
    for (Index i = 0; i < rows; i++)
        for (Index j = i < whole_rows ? whole_columns : 0; j < columns; j++) y[j * y_step + i] = x[i * x_step + j];
}

// 3x3 depthwise convolution of one block of channels; row[i] points at the left neighbour of the first pixel. `finish(sum, offset)` takes each vector.
template <class Finish>
INLINE void depthwise(const float* const row[3], Index pixels, const float* weight, Finish finish) {
    for (int half = 0; half < BLOCK; half += LANES) {
        V w[9];
#pragma GCC unroll 9
        for (int i = 0; i < 9; i++) w[i] = load(weight + i * BLOCK + half);
        for (Index at = half; at < pixels * BLOCK; at += BLOCK) {
            V sum = V{};
#pragma GCC unroll 3
            for (int y = 0; y < 3; y++) {
                sum += w[3 * y] * load(row[y] + at);
                sum += w[3 * y + 1] * load(row[y] + at + BLOCK);
                sum += w[3 * y + 2] * load(row[y] + at + 2 * BLOCK);
            }
            finish(sum, at);
        }
    }
}

// The last three rows of something, each `size` floats; a row outside the image is zeros
struct Ring {
    float* data;
    Index size;
    float* row(Index y) const { return data + (y + 3) % 3 * size; }
};

// ---- phases --------------------------------------------------------------------------------------------------------------------

void conv_in(const ConvIn& p, Tile t, float* scratch) {
    const Index width = t.x1 - t.x0, room = width + 2;
    const Index a = larger(t.x0 - 1, 0), b = smaller(t.x1 + 1, p.W);
    const Output finished = to_map(scratch, CHANNELS);  // one row before its activation
    static const float zeros[CHANNELS] = {};
    float* rows = scratch + CHANNELS * width;
    auto write = [&](Index y) {
        float* to = p.y.data + (y * p.W + t.x0) * p.y.step;
        for (Index x = 0; x < width; x++)
            for (int c = 0; c < CHANNELS; c += LANES) store(to + x * p.y.step + c, prelu(load(finished.data + x * CHANNELS + c), p.slope));
    };
    if (p.channels == 1) {  // the nine neighbours as nine channels
        constexpr int blocks = (9 + BLOCK - 1) / BLOCK;
        const Segments<blocks * BLOCK> segments(width);
        clear(rows, blocks * width * BLOCK);
        for (Index y = t.y0; y < t.y1; y++) {
            for (Index x = 0; x < width; x++)
                for (int dy = -1; dy <= 1; dy++)
                    for (int dx = -1; dx <= 1; dx++) {
                        const Index yy = y + dy, xx = t.x0 + x + dx;
                        const bool inside = yy >= 0 && yy < p.H && xx >= 0 && xx < p.W;
                        const int tap = 3 * (dy + 1) + dx + 1;
                        rows[tap / BLOCK * width * BLOCK + x * BLOCK + tap % BLOCK] = inside ? p.x.data[(yy * p.W + xx) * p.x.step] : 0;
                    }
            product(width, rows, segments.at, blocks, p.weight, bias(zeros), finished, 0, CHANNELS / BLOCK);
            write(y);
        }
        return;
    }
    const Ring ring{rows, CHANNELS * room};
    clear(ring.data, 3 * ring.size);
    constexpr int blocks = CHANNELS / BLOCK;
    for (Index y = t.y0 - 1; y <= t.y1; y++) {
        if (y < 0 || y >= p.H) clear(ring.row(y), ring.size);
        else copy_blocked(p.x.data + (y * p.W + a) * p.x.step, p.x.step, b - a, CHANNELS, ring.row(y) + (a - t.x0 + 1) * BLOCK, room);
        if (y - 1 < t.y0) continue;
        Index segments[9 * blocks], n = 0;
        for (int dy = -2; dy <= 0; dy++)
            for (int dx = 0; dx < 3; dx++)
                for (int s = 0; s < blocks; s++) segments[n++] = ring.row(y + dy) - ring.data + (s * room + dx) * BLOCK;
        product(width, ring.data, segments, n, p.weight, bias(zeros), finished, 0, blocks);
        write(y - 1);
    }
}

template <int D> struct HeadVector;  // the channels of one head, for maps of 32 and 64 channels
template <> struct HeadVector<4> {
    typedef float type __attribute__((vector_size(16)));
    typedef float unaligned __attribute__((vector_size(16), aligned(4), may_alias));
};
template <> struct HeadVector<8> {
    typedef float type __attribute__((vector_size(32)));
    typedef float unaligned __attribute__((vector_size(32), aligned(4), may_alias));
};

template <int C>
void gram(const Gram& p, Tile t, double* sums, float* scratch) {
    constexpr int D = C / HEADS;  // channels of a head
    using Head = typename HeadVector<D>::type;
    using UnalignedHead = typename HeadVector<D>::unaligned;
    const Index width = t.x1 - t.x0, room = width + 2;
    const Index a = larger(t.x0 - 1, 0), b = smaller(t.x1 + 1, p.W);
    float* normal = scratch;
    const Ring ring{normal + C * room, 2 * C * room};
    float* qk = ring.data + 3 * ring.size;  // blocked, q then k
    clear(ring.data, 3 * ring.size);
    __builtin_memset(sums, 0, p.sums_per_tile() * sizeof(double));
    for (Index y = t.y0 - 1; y <= t.y1; y++) {
        if (y + 1 < p.H) prefetch(p.x.data + ((y + 1) * p.W + a) * p.x.step, p.x.step, b - a, C);
        if (y < 0 || y >= p.H) clear(ring.row(y), ring.size);
        else {
            normalise<C>(p.x.data + (y * p.W + a) * p.x.step, p.x.step, b - a, normal, room);
            conv1x1<C>(b - a, normal, room, p.weight, bias(p.bias), blocked(ring.row(y) + (a - t.x0 + 1) * BLOCK, room), 0, 2 * C / BLOCK);
        }
        if (y - 1 < t.y0) continue;
        for (int block = 0; block < 2 * C / BLOCK; block++) {
            const Index at = block * room * BLOCK;
            const float* row[3] = {ring.row(y - 2) + at, ring.row(y - 1) + at, ring.row(y) + at};
            float* to = qk + block * width * BLOCK;
            depthwise(row, width, p.depthwise + block * 9 * BLOCK, [to](V sum, Index at) { store(to + at, sum); });
        }
        // a row of one tile in float32, tiles and rows in double: the sum over all pixels would lose 1e-4 in float32
        for (int head = 0; head < HEADS; head++) {
            const int channel = head * D;
            const float* q = qk + channel / BLOCK * width * BLOCK + channel % BLOCK;
            const float* k = q + C * width;
            Head products[D], q_norm = {}, k_norm = {};
#pragma GCC unroll 8
            for (int i = 0; i < D; i++) products[i] = Head{};
            for (Index x = 0; x < width * BLOCK; x += BLOCK) {
                Head qs = *reinterpret_cast<const UnalignedHead*>(q + x), ks = *reinterpret_cast<const UnalignedHead*>(k + x);
#pragma GCC unroll 8
                for (int i = 0; i < D; i++) products[i] += q[x + i] * ks;
                q_norm += qs * qs;
                k_norm += ks * ks;
            }
            for (int i = 0; i < D; i++) {
                for (int j = 0; j < D; j++) sums[(head * D + i) * D + j] += products[i][j];
                sums[C * D + channel + i] += q_norm[i];
                sums[C * D + C + channel + i] += k_norm[i];
            }
        }
    }
}

void gram_any(const Gram& p, Tile t, double* sums, float* scratch) { p.channels == CHANNELS ? gram<CHANNELS>(p, t, sums, scratch) : gram<2 * CHANNELS>(p, t, sums, scratch); }

// One pass down the tile. At step y the values of row y, the attended row y - 1 and the widened signal of row y - 1 are made, and row y - 2 is finished.
template <int C>
void restormer(const Block& p, Tile t, float* scratch) {
    constexpr int HIDDEN = 4 * C, BLOCKS = C / BLOCK, HIDDEN_BLOCKS = HIDDEN / BLOCK;
    const Index width = t.x1 - t.x0, room1 = width + 2, room2 = width + 4;        // with one and with two neighbours on each side
    const Index a1 = larger(t.x0 - 1, 0), b1 = smaller(t.x1 + 1, p.W), a2 = larger(t.x0 - 2, 0), b2 = smaller(t.x1 + 2, p.W);
    const Index skip1 = (a1 - t.x0 + 1) * BLOCK, skip2 = (a2 - t.x0 + 2) * BLOCK;  // columns outside the image stay zero
    auto take = [&scratch](Index n) { float* p = scratch; scratch += n; return p; };
    const Ring values{take(3 * C * room2), C * room2}, hidden{take(3 * 2 * HIDDEN * room1), 2 * HIDDEN * room1};
    float *normal = take(C * room2), *value = take(C * room1), *attended = take(2 * C * room1);
    float *active = take(HIDDEN * width), *gate = take(BLOCK * width), *result = take(C * width);
    clear(values.data, 3 * values.size);
    clear(hidden.data, 3 * hidden.size);
    auto attended_row = [&](Index y) { return attended + (y & 1) * C * room1; };
    auto x_at = [&](Index y, Index x) { return p.x.data + (y * p.W + x) * p.x.step; };

    for (Index y = t.y0 - 2; y < t.y1 + 2; y++) {
        if (y + 1 >= 0 && y + 1 < p.H) prefetch(x_at(y + 1, a2), p.x.step, b2 - a2, C);
        if (y < 0 || y >= p.H) clear(values.row(y), values.size);
        else {
            normalise<C>(x_at(y, a2), p.x.step, b2 - a2, normal, room2);
            conv1x1<C>(b2 - a2, normal, room2, p.value, bias(p.value_bias), blocked(values.row(y) + skip2, room2), 0, BLOCKS);
        }
        if (y - 1 < t.y0 - 1) continue;

        const bool widen = y - 1 >= 0 && y - 1 < p.H, finish = y - 2 >= t.y0;
        if (!widen) clear(hidden.row(y - 1), hidden.size);
        else {
            for (int block = 0; block < BLOCKS; block++) {
                const Index at = block * room2 * BLOCK;
                const float* row[3] = {values.row(y - 2) + at, values.row(y - 1) + at, values.row(y) + at};
                float* to = value + block * room1 * BLOCK;
                depthwise(row, room1, p.value_depthwise + block * 9 * BLOCK, [to](V sum, Index at) { store(to + at, sum); });
            }
            float* x1 = attended_row(y - 1) + (a1 - t.x0 + 1) * C;
            conv1x1<C>(b1 - a1, value + skip1, room1, p.mix, from_map(x_at(y - 1, a1), p.x.step), to_map(x1, C), 0, BLOCKS);
            normalise<C>(x1, C, b1 - a1, normal, room1);
        }
        // a block of gates and its block of values at a time, while they are in the nearest cache
        for (int block = 0; block < HIDDEN_BLOCKS; block++) {
            const int partner = block + HIDDEN_BLOCKS;
            if (widen)
                for (int part = block; part <= partner; part += HIDDEN_BLOCKS)
                    conv1x1<C>(b1 - a1, normal, room1, p.widen, bias(p.widen_bias), blocked(hidden.row(y - 1) + skip1, room1), part, part + 1);
            if (!finish) continue;
            const float *gates[3], *partners[3];
            for (int i = 0; i < 3; i++) {
                gates[i] = hidden.row(y - 3 + i) + block * room1 * BLOCK;
                partners[i] = hidden.row(y - 3 + i) + partner * room1 * BLOCK;
            }
            float* to = active + block * width * BLOCK;
            depthwise(gates, width, p.widen_depthwise + block * 9 * BLOCK, [gate](V sum, Index at) { store(gate + at, gelu(sum)); });
            depthwise(partners, width, p.widen_depthwise + partner * 9 * BLOCK, [to, gate](V sum, Index at) { store(to + at, load(gate + at) * sum); });
        }
        if (!finish) continue;

        const Index done = y - 2;
        const Initial x1 = from_map(attended_row(done) + C, C);
        float* out = p.y.data + (done * p.W + t.x0) * p.y.step;
        conv1x1<HIDDEN>(width, active, width, p.narrow, x1, p.after ? blocked(result, width) : to_map(out, p.y.step), 0, BLOCKS);
        if (p.after_channels == CHANNELS)
            conv1x1<C>(width, result, width, p.after, bias(p.after_bias), to_map(out, p.y.step), 0, CHANNELS / BLOCK);
        else if (p.after_channels == 1) {  // one output in a block of them; its sigmoid
            conv1x1<C>(width, result, width, p.after, bias(p.after_bias), blocked(active, width), 0, 1);
            for (Index x = 0; x < width; x++) {
                V logit = splat(active[x * BLOCK]), e = exp(logit > 0 ? -logit : logit);  // e^-|logit|
                out[x * p.y.step] = ((logit > 0 ? splat(1) : e) / (1 + e))[0];
            }
        }
    }
}

void restormer_any(const Block& p, Tile t, float* scratch) { p.channels == CHANNELS ? restormer<CHANNELS>(p, t, scratch) : restormer<2 * CHANNELS>(p, t, scratch); }

void tokens(const Tokens& p, Index row, float* scratch) {
    float *x = scratch, *y = x + CHANNELS * PIECE;
    for (Index start = 0; start < p.columns; start += PIECE) {
        const Index n = smaller(PIECE, p.columns - start);
        for (Index i = 0; i < n; i++)
            copy_blocked(p.x.data + (p.pick_row[row] * p.W + p.pick_column[start + i]) * p.x.step, 0, 1, CHANNELS, x + i * BLOCK, n);
        conv1x1<CHANNELS>(n, x, n, p.weight, bias(p.bias), to_map(y, CHANNELS), 0, CHANNELS / BLOCK);
        transpose(y, CHANNELS, n, CHANNELS, p.tokens + row * p.columns + start, p.rows * p.columns);
    }
}

void keys(const Keys& p, Index task, float* scratch) {
    static const float zeros[HEAD_WIDTH] = {};
    const Index n0 = task * p.CHUNK, n = smaller(p.CHUNK, p.N - n0);
    copy_blocked(p.tokens + n0 * TOKEN, TOKEN, n, TOKEN, scratch, p.CHUNK);
    for (int head = 0; head < HEADS; head++)
        conv1x1<TOKEN>(n, scratch, p.CHUNK, p.weight + head * HEAD_WIDTH * TOKEN, bias(zeros),
                       blocked(p.keys + head * HEAD_WIDTH * p.N + n0 * BLOCK, p.N), 0, HEAD_WIDTH / BLOCK);
}

// One lane is one text token, so maximum and sum over image tokens are sums of vectors. Scores are exponentiated chunk by chunk against the
// chunk's own maximum, and chunks are brought to a common one at the end: one pass to write, one to read.
void weights(const Weights& p, Index task, float* scratch) {
    static const float zeros[BLOCK] = {};
    const Index head = task / p.groups, group = task % p.groups, n_chunks = p.chunks();
    float *largest = scratch, *total = largest + n_chunks * BLOCK, *e = total + n_chunks * BLOCK;  // (chunks, BLOCK) twice, (N, BLOCK)
    const float* head_keys = p.keys + head * HEAD_WIDTH * p.N;
    float* result = p.weights + task * p.N;
    clear(result, p.N);
    for (Index block = group; block < p.query_blocks; block += p.groups) {
        const Index query = (head * p.query_blocks + block) * BLOCK;  // first of BLOCK text tokens
        for (Index chunk = 0; chunk < n_chunks; chunk++) {
            const Index n0 = chunk * p.CHUNK, n = smaller(p.CHUNK, p.N - n0);
            float* scores = e + n0 * BLOCK;
            conv1x1<HEAD_WIDTH>(n, head_keys + n0 * BLOCK, p.N, p.query + query * HEAD_WIDTH, bias(zeros), blocked(scores, n), 0, 1);
            for (int half = 0; half < BLOCK; half += LANES) {
                V most = load(scores + half), sum = V{};
                for (Index i = 1; i < n; i++) most = larger(most, load(scores + i * BLOCK + half));
                for (Index i = 0; i < n; i++) {
                    V value = exp(load(scores + i * BLOCK + half) - most);
                    store(scores + i * BLOCK + half, value);
                    sum += value;
                }
                store(largest + chunk * BLOCK + half, most);
                store(total + chunk * BLOCK + half, sum);
            }
        }
        for (int half = 0; half < BLOCK; half += LANES) {  // largest becomes the factor with which a chunk enters the mean
            V most = load(largest + half), sum = V{};
            for (Index c = 1; c < n_chunks; c++) most = larger(most, load(largest + c * BLOCK + half));
            for (Index c = 0; c < n_chunks; c++) {
                V factor = exp(load(largest + c * BLOCK + half) - most);
                sum += factor * load(total + c * BLOCK + half);
                store(largest + c * BLOCK + half, factor);
            }
            V scale = load(p.share + query + half) / sum;
            for (Index c = 0; c < n_chunks; c++) store(largest + c * BLOCK + half, load(largest + c * BLOCK + half) * scale);
        }
        for (Index i = 0; i < p.N; i++) {
            const float* factor = largest + i / p.CHUNK * BLOCK;
            result[i] += sum_lanes(load(e + i * BLOCK) * load(factor) + load(e + i * BLOCK + LANES) * load(factor + LANES))[0];
        }
    }
}

void pool(const Pool& p, Index slice) {
    for (int half = 0; half < BLOCK; half += LANES) {
        const Index column = slice * BLOCK + half;
        double sums[HEADS][LANES] = {};
        for (Index n0 = 0; n0 < p.N; n0 += 256) {
            V partial[HEADS];
            for (int h = 0; h < HEADS; h++) partial[h] = V{};
            for (Index n = n0; n < smaller(n0 + 256, p.N); n++) {
                V token = load(p.tokens + n * TOKEN + column);
#pragma GCC unroll 8
                for (int h = 0; h < HEADS; h++) partial[h] += p.weights[h * p.N + n] * token;
            }
            for (int h = 0; h < HEADS; h++)
                for (int i = 0; i < LANES; i++) sums[h][i] += partial[h][i];
        }
        for (int h = 0; h < HEADS; h++)
            for (int i = 0; i < LANES; i++) p.pooled[h * TOKEN + column + i] = sums[h][i];
    }
}

void guided(const Guided& p, Index y0, Index y1, float* scratch) {
    const bool few = p.W < p.columns;  // then only the grid's columns that are shown
    const Index columns = few ? p.W : p.columns;
    float *s = scratch, *g = s + CHANNELS * columns, *path = g + CHANNELS * columns, *x = path + CHANNELS * columns, *sum = x + CHANNELS * PIECE;
    Index ready = -1;                  // the grid row whose text path is in `path`
    for (Index y = y0; y < y1; y++) {
        if (p.show_row[y] != ready) {
            ready = p.show_row[y];
            for (int c = 0; c < CHANNELS; c++) {
                const Index start = (c * p.rows + ready) * p.columns;  // place in the raster that tokens are rows of
                float* to = g + c * columns;
                if (few)
                    for (Index i = 0; i < columns; i++) to[i] = p.tokens[start + p.show_column[i]] * p.gate[(start + p.show_column[i]) % TOKEN];
                else
                    for (Index i = 0, n; i < columns; i += n) {
                        const Index phase = (start + i) % TOKEN;
                        n = smaller(columns - i, TOKEN - phase);
                        for (Index k = 0; k < n; k++) to[i + k] = p.tokens[start + i + k] * p.gate[phase + k];
                    }
            }
            for (int block = 0; block < CHANNELS / BLOCK; block++)
                transpose(g + block * BLOCK * columns, columns, BLOCK, columns, s + block * BLOCK * columns, BLOCK);
            conv1x1<CHANNELS>(columns, s, columns, p.gated, bias(p.gated_bias), blocked(g, columns), 0, CHANNELS / BLOCK);
            for (Index i = 0; i < CHANNELS * columns; i += LANES) store(g + i, prelu(load(g + i), p.gated_slope));
            conv1x1<CHANNELS>(columns, g, columns, p.from_gated, bias(p.bias), to_map(path, CHANNELS), 0, CHANNELS / BLOCK);
        }
        for (Index start = 0; start < p.W; start += PIECE) {
            const Index n = smaller(PIECE, p.W - start);
            for (Index i = 0; i < n; i++) {
                const float* from = path + (few ? start + i : p.show_column[start + i]) * CHANNELS;
                for (int c = 0; c < CHANNELS; c += LANES) store(sum + i * CHANNELS + c, load(from + c));
            }
            copy_blocked(p.x.data + (y * p.W + start) * p.x.step, p.x.step, n, CHANNELS, x, n);
            conv1x1<CHANNELS>(n, x, n, p.from_x, from_map(sum, CHANNELS), to_map(sum, CHANNELS), 0, CHANNELS / BLOCK);
            float* to = p.y.data + (y * p.W + start) * p.y.step;
            for (Index i = 0; i < n; i++)
                for (int c = 0; c < CHANNELS; c += LANES) store(to + i * p.y.step + c, prelu(load(sum + i * CHANNELS + c), p.slope));
        }
    }
}

}  // namespace

extern const Kernels FILM_KERNELS{FILM_NAME, BLOCK, conv_in, gram_any, restormer_any, tokens, keys, weights, pool, guided};

}  // namespace film
