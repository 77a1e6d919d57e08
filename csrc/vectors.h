// Vectors, products and rows: what the fusing and the training kernels are made of. Compiled once for each instruction set (see setup.py).
//
// Vectors run along channels. Rows inside a task are "blocked", [channel block][pixel][BLOCK], so that every product reads and writes
// contiguous, aligned memory whatever the image's size, and the only inner loop that matters, `product_tile`, has constant strides.
//
// Everything is in an unnamed namespace, and nothing uses the standard library's inline functions: the linker could otherwise keep the
// copy compiled for the newest instruction set.
#pragma once
#include "film.h"

#ifndef FILM_SET  // the instruction set's name in the tables of kernels, and as people write it
#define FILM_SET plain
#define FILM_NAME "plain"
#endif
#define FILM_JOIN(a, b) a##_##b
#define FILM_TABLE_OF(set, table) FILM_JOIN(set, table)
#define FILM_TABLE(table) FILM_TABLE_OF(FILM_SET, table)

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
inline void prefetch(const float* x, Index step, Index pixels, int channels) {
    for (Index p = 0; p < pixels; p++, x += step)
        for (int c = 0; c < channels; c += 16) __builtin_prefetch(x + c);
}

// (x - mean) / deviation over the channels of each pixel (the weight and bias of the normalisation are folded into what follows), as a blocked row
template <int C>
void normalise(const float* x, Index step, Index pixels, float* y, Index width, float* scales = nullptr) {
    for (Index p = 0; p < pixels; p++, x += step, y += BLOCK) {
        V v[C / LANES], sum = V{}, squares = V{};
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) { v[i] = load(x + i * LANES); sum += v[i]; }
        V mean = sum_lanes(sum) * (1.0f / C);
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) { v[i] -= mean; squares += v[i] * v[i]; }
        V scale = splat(1.0f / __builtin_sqrtf(sum_lanes(squares)[0] * (1.0f / C) + 1e-5f));
        if (scales) scales[p] = scale[0];
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) store(y + (i / 2) * width * BLOCK + (i % 2) * LANES, v[i] * scale);
    }
}

void copy_blocked(const float* x, Index step, Index pixels, int channels, float* y, Index width) {
    for (Index p = 0; p < pixels; p++, x += step, y += BLOCK)
        for (int c = 0; c < channels; c += LANES) store(y + (c / BLOCK) * width * BLOCK + c % BLOCK, load(x + c));
}

// A one-channel map's 3x3 neighbours as the first nine channels of a blocked row, zeros outside the map
void gather_neighbours(Map x, Index H, Index W, Index row, Index column, Index pixels, float* y) {
    for (Index p = 0; p < pixels; p++)
        for (int tap = 0; tap < 9; tap++) {
            const Index yy = row + tap / 3 - 1, xx = column + p + tap % 3 - 1;
            const bool inside = yy >= 0 && yy < H && xx >= 0 && xx < W;
            y[(tap / BLOCK * pixels + p) * BLOCK + tap % BLOCK] = inside ? x.data[(yy * W + xx) * x.step] : 0;
        }
}

// y[j][i] = x[i][j], four rows and columns at a time
inline void transpose(const float* x, Index x_step, Index rows, Index columns, float* y, Index y_step) {
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

template <int D> struct HeadVector;  // the channels of one head, for maps of 32 and 64 channels
template <> struct HeadVector<4> {
    typedef float type __attribute__((vector_size(16)));
    typedef float unaligned __attribute__((vector_size(16), aligned(4), may_alias));
};
template <> struct HeadVector<8> {
    typedef float type __attribute__((vector_size(32)));
    typedef float unaligned __attribute__((vector_size(32), aligned(4), may_alias));
};

// The last three rows of something, each `size` floats; a row outside the image is zeros
struct Ring {
    float* data;
    Index size;
    float* row(Index y) const { return data + (y + 3) % 3 * size; }
};

// The attention of one block of text tokens in one head. One lane is one text token, so maximum and sum over image tokens are those of vectors. Scores
// are exponentiated chunk by chunk against the chunk's own maximum: `e` (N, BLOCK); `factor` (chunks, BLOCK) brings them to softmax times share.
inline void softmax_block(const float* keys, Index N, const float* query, const float* share, float* factor, float* total, float* e) {
    static const float zeros[BLOCK] = {};
    for (Index chunk = 0; chunk < chunks(N); chunk++) {
        const Index n0 = chunk * CHUNK, n = smaller(CHUNK, N - n0);
        float* scores = e + n0 * BLOCK;
        conv1x1<HEAD_WIDTH>(n, keys + n0 * BLOCK, N, query, bias(zeros), blocked(scores, n), 0, 1);
        V most[4], sum[4];  // of the even and of the odd tokens, both halves of the block: four chains that do not wait for each other
        const Index vectors = 2 * n, whole = vectors / 4 * 4;  // n even: all of them
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) most[c] = load(scores + c % 2 * LANES), sum[c] = V{};
        for (Index i = 0; i < vectors; i += 4)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
                if (c < 2 || i < whole) most[c] = larger(most[c], load(scores + (i + c) * LANES));
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) {
            most[c] = most[c + 2] = larger(most[c], most[c + 2]);
            store(factor + chunk * BLOCK + c * LANES, most[c]);
        }
        for (Index i = 0; i < vectors; i += 4)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
                if (c < 2 || i < whole) {
                    V value = exp(load(scores + (i + c) * LANES) - most[c]);
                    store(scores + (i + c) * LANES, value);
                    sum[c] += value;
                }
        for (int c = 0; c < 2; c++) store(total + chunk * BLOCK + c * LANES, sum[c] + sum[c + 2]);
    }
    for (int half = 0; half < BLOCK; half += LANES) {
        V most = load(factor + half), sum = V{};
        for (Index c = 1; c < chunks(N); c++) most = larger(most, load(factor + c * BLOCK + half));
        for (Index c = 0; c < chunks(N); c++) {
            V to_common = exp(load(factor + c * BLOCK + half) - most);
            sum += to_common * load(total + c * BLOCK + half);
            store(factor + c * BLOCK + half, to_common);
        }
        V scale = load(share + half) / sum;
        for (Index c = 0; c < chunks(N); c++) store(factor + c * BLOCK + half, load(factor + c * BLOCK + half) * scale);
    }
}

// Tokens times gate along a row of the grid, as a blocked row s; with fewer image columns than grid columns only those that are shown.
// `by_channel` (32, columns) is room.
inline void gated_tokens(const Guided& p, Index row, Index columns, float* by_channel, float* s) {
    for (int c = 0; c < CHANNELS; c++) {
        const Index start = (c * p.rows + row) * p.columns;  // place in the raster that tokens are rows of
        float* to = by_channel + c * columns;
        if (columns < p.columns)
            for (Index i = 0; i < columns; i++) to[i] = p.tokens[start + p.show_column[i]] * p.gate[(start + p.show_column[i]) % TOKEN];
        else
            for (Index i = 0, n; i < columns; i += n) {
                const Index phase = (start + i) % TOKEN;
                n = smaller(columns - i, TOKEN - phase);
                for (Index k = 0; k < n; k++) to[i + k] = p.tokens[start + i + k] * p.gate[phase + k];
            }
    }
    for (int block = 0; block < CHANNELS / BLOCK; block++)
        transpose(by_channel + block * BLOCK * columns, columns, BLOCK, columns, s + block * BLOCK * columns, BLOCK);
}

}  // namespace
}  // namespace film
