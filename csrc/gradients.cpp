// Training: the gradients of the phases. What was not kept is made again, row by row as in kernels.cpp, with one more row and column of rim for each
// 3x3 convolution on the way back.
#include "vectors.h"

namespace film {
namespace {

// Columns of the image that a tile with a rim covers, and how many of the rim lie outside the image on its left
struct Span {
    Index from, to, skip;
    Span(Tile t, Index rim, Index W) : from(larger(t.x0 - rim, 0)), to(smaller(t.x1 + rim, W)), skip(from - (t.x0 - rim)) {}
    Index count() const { return to - from; }
};

// sums[k][o] += sum over pixels of left[p][o] x[p][k], one block of o and P of k. The sums stay in registers over the row.
template <int P>
void outer_tile(Index pixels, const float* left, const float* x, float* sums) {
    V first[P], second[P];
#pragma GCC unroll 16
    for (int k = 0; k < P; k++) { first[k] = load(sums + k * BLOCK); second[k] = load(sums + k * BLOCK + LANES); }
    for (Index p = 0; p < pixels; p++) {
        V a = load(left + p * BLOCK), b = load(left + p * BLOCK + LANES);
#pragma GCC unroll 16
        for (int k = 0; k < P; k++) {
            V value = splat(x[p * BLOCK + k]);
            first[k] += value * a;
            second[k] += value * b;
        }
    }
#pragma GCC unroll 16
    for (int k = 0; k < P; k++) { store(sums + k * BLOCK, first[k]); store(sums + k * BLOCK + LANES, second[k]); }
}

// A weight's gradient from a row: sums [block of left][channel of x][BLOCK], `inputs` channels of x in all; these blocks of left and x
INLINE void outer(Index pixels, const float* left, Index left_width, int left_blocks, const float* x, Index x_width, int x_blocks, float* sums, Index inputs) {
    constexpr int TILES = (BLOCK + TILE - 1) / TILE, SIZE = BLOCK / TILES, LONGER = BLOCK % TILES;
    for (int o = 0; o < left_blocks; o++)
        for (int i = 0; i < x_blocks; i++)
            for (int tile = 0, k = 0; tile < TILES; tile++) {
                const float* from = x + i * x_width * BLOCK + k;
                float* to = sums + (o * inputs + i * BLOCK + k) * BLOCK;
                if (tile < LONGER) { outer_tile<SIZE + 1>(pixels, left + o * left_width * BLOCK, from, to); k += SIZE + 1; }
                else { outer_tile<SIZE>(pixels, left + o * left_width * BLOCK, from, to); k += SIZE; }
            }
}

// Gradient of depthwise weights: sums [9][BLOCK] of one block; row[i] points at the left neighbour of the first pixel
void outer_depthwise(const float* const row[3], const float* gradient, Index pixels, float* sums) {
    for (int half = 0; half < BLOCK; half += LANES) {
        V w[9];
#pragma GCC unroll 9
        for (int i = 0; i < 9; i++) w[i] = load(sums + i * BLOCK + half);
        for (Index at = half; at < pixels * BLOCK; at += BLOCK) {
            V g = load(gradient + at);
#pragma GCC unroll 3
            for (int y = 0; y < 3; y++) {
                w[3 * y] += g * load(row[y] + at);
                w[3 * y + 1] += g * load(row[y] + at + BLOCK);
                w[3 * y + 2] += g * load(row[y] + at + 2 * BLOCK);
            }
        }
#pragma GCC unroll 9
        for (int i = 0; i < 9; i++) store(sums + i * BLOCK + half, w[i]);
    }
}

void add_pixels(const float* row, Index pixels, float* sums) {
    V a = load(sums), b = load(sums + LANES);
    for (Index p = 0; p < pixels; p++) { a += load(row + p * BLOCK); b += load(row + p * BLOCK + LANES); }
    store(sums, a);
    store(sums + LANES, b);
}

// Back through y = (x - mean) scale: dx = scale (dy - mean(dy) - y mean(dy y)), plus what reaches x otherwise. In blocked rows, out to a map's row.
template <int C>
void normalise_back(const float* dy, Index dy_width, const float* y, Index y_width, const float* scales, const float* residual, Index residual_step,
                    Index pixels, float* dx, Index dx_step) {
    for (Index p = 0; p < pixels; p++) {
        V g[C / LANES], n[C / LANES], sum = V{}, projected = V{};
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) {
            g[i] = load(dy + (i / 2 * dy_width + p) * BLOCK + i % 2 * LANES);
            n[i] = load(y + (i / 2 * y_width + p) * BLOCK + i % 2 * LANES);
            sum += g[i];
            projected += g[i] * n[i];
        }
        V mean = sum_lanes(sum) * (1.0f / C), slope = sum_lanes(projected) * (1.0f / C), scale = splat(scales[p]);
#pragma GCC unroll 16
        for (int i = 0; i < C / LANES; i++) {
            V d = scale * (g[i] - mean - n[i] * slope);
            if (residual) d += load(residual + p * residual_step + i * LANES);
            store(dx + p * dx_step + i * LANES, d);
        }
    }
}

// gelu(x) and its derivative Phi(x) + x phi(x)
INLINE V gelu_slope(V x, V value) {
    V inside = value / x, t = x * x;  // Phi, but for x near 0
    V phi_large = x * x > 1e-4f ? inside : 0.5f + x * 0.398942280f;
    V beyond = x > 0 ? splat(1) : V{};
    V phi = t > 5.6f * 5.6f ? beyond : phi_large;
    return phi + x * 0.398942280f * exp(-0.5f * t);
}

INLINE Map row_of(Map m, Index W, Index y, Index x) { return {m.data + (y * W + x) * m.step, m.step}; }

void conv_in(const ConvInGradient& p, Tile t, float* sums, float* scratch) {
    static const float zeros[CHANNELS] = {};
    constexpr int BLOCKS = CHANNELS / BLOCK;
    const Index width = t.x1 - t.x0, room1 = width + 2, room2 = width + 4;
    float* slopes = sums + p.weights(BLOCK);
    V slope_sum = V{};
    // the gradient before the activation, from its value z: a row in place of z
    auto before = [&](float* z, Index z_width, Index y, Index from, Index count, Index first, Index last) {
        const Map dy = row_of(p.dy, p.W, y, from);
        for (Index i = 0; i < count; i++)
            for (int c = 0; c < CHANNELS; c += LANES) {
                float* at = z + (c / BLOCK * z_width + i) * BLOCK + c % BLOCK;
                V value = load(at), g = load(dy.data + i * dy.step + c);
                if (i >= first && i < last) slope_sum += value > 0 ? V{} : value * g;
                store(at, value > 0 ? g : p.slope * g);
            }
    };
    if (p.channels == 1) {
        constexpr int blocks = (9 + BLOCK - 1) / BLOCK;
        const Segments<blocks * BLOCK> segments(width);
        float *neighbours = scratch, *z = neighbours + blocks * BLOCK * width;
        clear(neighbours, blocks * BLOCK * width);
        for (Index y = t.y0; y < t.y1; y++) {
            gather_neighbours(p.x, p.H, p.W, y, t.x0, width, neighbours);
            product(width, neighbours, segments.at, blocks, p.weight, bias(zeros), blocked(z, width), 0, BLOCKS);
            before(z, width, y, t.x0, width, 0, width);
            outer(width, z, width, BLOCKS, neighbours, width, blocks, sums, blocks * BLOCK);
        }
    } else {
        auto take = [&scratch](Index n) { float* p = scratch; scratch += n; return p; };
        const Ring x{take(3 * CHANNELS * room2), CHANNELS * room2}, z{take(3 * CHANNELS * room1), CHANNELS * room1};
        const Span near(t, 1, p.W), wide(t, 2, p.W);
        clear(x.data, 3 * x.size);
        clear(z.data, 3 * z.size);
        Index segments[9 * BLOCKS];
        auto around = [&](const Ring& ring, Index y, Index room) {  // the nine neighbours of row y, from the ring's start
            Index n = 0;
            for (int dy = -1; dy <= 1; dy++)
                for (int dx = 0; dx < 3; dx++)
                    for (int s = 0; s < BLOCKS; s++) segments[n++] = ring.row(y + dy) - ring.data + (s * room + dx) * BLOCK;
        };
        for (Index y = t.y0 - 2; y < t.y1 + 2; y++) {
            if (y < 0 || y >= p.H) clear(x.row(y), x.size);
            else {
                const Map from = row_of(p.x, p.W, y, wide.from);
                copy_blocked(from.data, from.step, wide.count(), CHANNELS, x.row(y) + wide.skip * BLOCK, room2);
            }
            const Index row = y - 1, done = y - 2;
            if (row < t.y0 - 1) continue;
            if (row < 0 || row >= p.H) clear(z.row(row), z.size);
            else {
                around(x, row, room2);
                float* to = z.row(row) + near.skip * BLOCK;
                product(near.count(), x.data + near.skip * BLOCK, segments, 9 * BLOCKS, p.weight, bias(zeros), blocked(to, room1), 0, BLOCKS);
                const bool own = row >= t.y0 && row < t.y1;  // its slopes are this tile's
                const Index first = 1 - near.skip;
                before(to, room1, row, near.from, near.count(), own ? first : 0, own ? first + width : 0);
                if (own)
                    for (int tap = 0; tap < 9; tap++)
                        outer(width, z.row(row) + BLOCK, room1, BLOCKS, x.row(row + tap / 3 - 1) + (1 + tap % 3) * BLOCK, room2, BLOCKS,
                              sums + tap * CHANNELS * CHANNELS, CHANNELS);
            }
            if (done < t.y0) continue;
            around(z, done, room1);
            const Map to = row_of(p.dx, p.W, done, t.x0);
            product(width, z.data, segments, 9 * BLOCKS, p.weight_back, bias(zeros), to_map(to.data, to.step), 0, BLOCKS);
        }
    }
    store(slopes, load(slopes) + slope_sum);
}

// At step y: values of row y; x1 and the widened signal of row y - 1; gradients of the activation's two sides at row y - 2; row y - 3 is finished.
template <int C>
void feed_forward(const FeedForwardGradient& p, Tile t, float* sums, float* scratch) {
    constexpr int HIDDEN = 4 * C, BLOCKS = C / BLOCK, HIDDEN_BLOCKS = HIDDEN / BLOCK;
    static const float zeros[2 * CHANNELS * 4] = {};
    const Index width = t.x1 - t.x0, room1 = width + 2, room2 = width + 4, room3 = width + 6;
    const Span near(t, 1, p.W), wide(t, 2, p.W), widest(t, 3, p.W);
    auto take = [&scratch](Index n) { float* p = scratch; scratch += n; return p; };
    const Ring z{take(3 * C * room3), C * room3}, value{take(3 * C * room2), C * room2}, normal{take(3 * C * room2), C * room2};
    const Ring hidden{take(3 * 2 * HIDDEN * room2), 2 * HIDDEN * room2}, d_hidden{take(3 * 2 * HIDDEN * room1), 2 * HIDDEN * room1};
    float *normal_x = take(C * room3), *x1 = take(C * room2), *dy = take(C * room1);
    float *d_active = take(BLOCK * room1), *gate = take(BLOCK * room1), *active = take(BLOCK * room1);
    float *d_widened = take(2 * HIDDEN * width), *d_normal = take(C * width), *dx1 = take(C * width);
    const Ring scales{take(3 * room2), room2};
    clear(z.data, 3 * z.size);
    clear(hidden.data, 3 * hidden.size);
    clear(d_hidden.data, 3 * d_hidden.size);
    clear(d_active, BLOCK * room1);  // columns outside the image stay zero
    clear(dy, C * room1);
    auto inside = [&](Index y) { return y >= 0 && y < p.H; };

    for (Index y = t.y0 - 3; y < t.y1 + 3; y++) {
        const Index widened = y - 1, activated = y - 2, done = y - 3;
        if (!inside(y)) clear(z.row(y), z.size);
        else {
            const Map x = row_of(p.x, p.W, y, widest.from);
            normalise<C>(x.data, x.step, widest.count(), normal_x, room3);
            conv1x1<C>(widest.count(), normal_x, room3, p.value, bias(p.value_bias), blocked(z.row(y) + widest.skip * BLOCK, room3), 0, BLOCKS);
        }
        if (widened < t.y0 - 2) continue;
        const bool widen = inside(widened), activate = activated >= t.y0 - 1 && inside(activated), finish = done >= t.y0;
        const bool own = activated >= t.y0 && activated < t.y1;  // its part of the weights' gradients is this tile's
        if (!widen) clear(hidden.row(widened), hidden.size);
        else {
            for (int block = 0; block < BLOCKS; block++) {
                const Index at = block * room3 * BLOCK;
                const float* row[3] = {z.row(widened - 1) + at, z.row(widened) + at, z.row(widened + 1) + at};
                float* to = value.row(widened) + block * room2 * BLOCK;
                depthwise(row, room2, p.value_depthwise + block * 9 * BLOCK, [to](V sum, Index at) { store(to + at, sum); });
            }
            const Map x = row_of(p.x, p.W, widened, wide.from);
            conv1x1<C>(wide.count(), value.row(widened) + wide.skip * BLOCK, room2, p.mix, from_map(x.data, x.step), to_map(x1, C), 0, BLOCKS);
            normalise<C>(x1, C, wide.count(), normal.row(widened) + wide.skip * BLOCK, room2, scales.row(widened) + wide.skip);
        }
        if (activate) {
            const Map from = row_of(p.dy, p.W, activated, near.from);
            copy_blocked(from.data, from.step, near.count(), C, dy + near.skip * BLOCK, room1);
        } else if (activated >= t.y0 - 1) clear(d_hidden.row(activated), d_hidden.size);

        for (int block = 0; block < HIDDEN_BLOCKS; block++) {
            const int partner = block + HIDDEN_BLOCKS;
            if (widen)
                for (int part = block; part <= partner; part += HIDDEN_BLOCKS)
                    conv1x1<C>(wide.count(), normal.row(widened) + wide.skip * BLOCK, room2, p.widen, bias(p.widen_bias),
                               blocked(hidden.row(widened) + wide.skip * BLOCK, room2), part, part + 1);
            if (activate) {
                const float *gates[3], *partners[3], *own_gates[3], *own_partners[3];
                for (int i = 0; i < 3; i++) {
                    gates[i] = hidden.row(activated - 1 + i) + block * room2 * BLOCK;
                    partners[i] = hidden.row(activated - 1 + i) + partner * room2 * BLOCK;
                    own_gates[i] = gates[i] + BLOCK;
                    own_partners[i] = partners[i] + BLOCK;
                }
                conv1x1<C>(near.count(), dy + near.skip * BLOCK, room1, p.narrow_back, {zeros, 0, 0}, {d_active + near.skip * BLOCK, BLOCK, 0}, block, block + 1);
                float *d_gate = d_hidden.row(activated) + block * room1 * BLOCK, *d_partner = d_hidden.row(activated) + partner * room1 * BLOCK;
                depthwise(gates, room1, p.widen_depthwise + block * 9 * BLOCK, [gate](V sum, Index at) { store(gate + at, sum); });
                depthwise(partners, room1, p.widen_depthwise + partner * 9 * BLOCK, [=](V other, Index at) {
                    V opening = load(gate + at), open = gelu(opening), d = load(d_active + at);
                    store(active + at, open * other);
                    store(d_partner + at, d * open);
                    store(d_gate + at, d * other * gelu_slope(opening, open));
                });
                if (own) {
                    outer(width, dy + BLOCK, room1, BLOCKS, active + BLOCK, room1, 1, sums + p.narrow_at() + block * BLOCK * BLOCK, HIDDEN);
                    outer_depthwise(own_gates, d_gate + BLOCK, width, sums + p.depthwise_at() + block * 9 * BLOCK);
                    outer_depthwise(own_partners, d_partner + BLOCK, width, sums + p.depthwise_at() + partner * 9 * BLOCK);
                }
            }
            if (finish)
                for (int part = block; part <= partner; part += HIDDEN_BLOCKS) {
                    const Index at = part * room1 * BLOCK;
                    const float* row[3] = {d_hidden.row(done - 1) + at, d_hidden.row(done) + at, d_hidden.row(done + 1) + at};
                    float* to = d_widened + part * width * BLOCK;
                    depthwise(row, width, p.widen_depthwise_back + part * 9 * BLOCK, [to](V sum, Index at) { store(to + at, sum); });
                    outer(width, to, width, 1, normal.row(done) + 2 * BLOCK, room2, BLOCKS, sums + part * C * BLOCK, C);
                    add_pixels(to, width, sums + p.bias_at() + part * BLOCK);
                }
        }
        if (!finish) continue;
        conv1x1<2 * HIDDEN>(width, d_widened, width, p.widen_back, bias(zeros), blocked(d_normal, width), 0, BLOCKS);
        const Map from = row_of(p.dy, p.W, done, t.x0), to = row_of(p.dx1, p.W, done, t.x0);
        normalise_back<C>(d_normal, width, normal.row(done) + 2 * BLOCK, room2, scales.row(done) + 2, from.data, from.step, width, to.data, to.step);
        copy_blocked(to.data, to.step, width, C, dx1, width);
        outer(width, dx1, width, BLOCKS, value.row(done) + 2 * BLOCK, room2, BLOCKS, sums + p.mix_at(), C);
    }
}

void feed_forward_any(const FeedForwardGradient& p, Tile t, float* sums, float* scratch) {
    p.channels == CHANNELS ? feed_forward<CHANNELS>(p, t, sums, scratch) : feed_forward<2 * CHANNELS>(p, t, sums, scratch);
}

// Gradients of queries and keys at a row of pixels: dq = P k + 2 s q, dk = P^T q + 2 s' k, with P and s those of their products and squares
template <int C>
void query_key_gradient(const ProjectionGradient& p, const float* qk, Index pixels, Index room, float* d) {
    constexpr int D = C / HEADS;
    using Head = typename HeadVector<D>::type;
    using UnalignedHead = typename HeadVector<D>::unaligned;
    auto at = [](const float* from) { return Head(*reinterpret_cast<const UnalignedHead*>(from)); };
    for (int head = 0; head < HEADS; head++) {
        const Index channel = head * D, offset = channel / BLOCK * room * BLOCK + channel % BLOCK, keys = C / BLOCK * room * BLOCK;
        const float *q = qk + offset, *k = q + keys;
        float *dq = d + offset, *dk = dq + keys;
        const Head square_q = at(p.squares + channel), square_k = at(p.squares + C + channel);
        for (Index x = 0; x < pixels * BLOCK; x += BLOCK) {
            Head a = square_q * at(q + x), b = square_k * at(k + x);
#pragma GCC unroll 8
            for (int i = 0; i < D; i++) {
                a += k[x + i] * at(p.products_t + (channel + i) * D);
                b += q[x + i] * at(p.products + (channel + i) * D);
            }
            *reinterpret_cast<UnalignedHead*>(dq + x) = a;
            *reinterpret_cast<UnalignedHead*>(dk + x) = b;
        }
    }
}

// At step y: the projected signal of row y; the gradient of its convolution at row y - 1; row y - 2 is finished.
template <int C, int OUT>
void projection(const ProjectionGradient& p, Tile t, float* sums, float* scratch) {
    constexpr int BLOCKS = C / BLOCK, OUT_BLOCKS = OUT / BLOCK;
    static const float zeros[2 * CHANNELS] = {};
    const Index width = t.x1 - t.x0, room1 = width + 2, room2 = width + 4;
    const Span near(t, 1, p.W), wide(t, 2, p.W);
    auto take = [&scratch](Index n) { float* p = scratch; scratch += n; return p; };
    const Ring z{take(3 * OUT * room2), OUT * room2}, d{take(3 * OUT * room1), OUT * room1}, normal{take(3 * C * room2), C * room2};
    float *out = take(OUT * room1), *dx1 = take(C * room1), *dz = take(OUT * width), *d_normal = take(C * width);
    const Ring scales{take(3 * room2), room2};
    clear(z.data, 3 * z.size);
    clear(d.data, 3 * d.size);
    auto inside = [&](Index y) { return y >= 0 && y < p.H; };

    for (Index y = t.y0 - 2; y < t.y1 + 2; y++) {
        const Index row = y - 1, done = y - 2;
        if (!inside(y)) clear(z.row(y), z.size);
        else {
            const Map x = row_of(p.x, p.W, y, wide.from);
            float* n = normal.row(y) + wide.skip * BLOCK;
            normalise<C>(x.data, x.step, wide.count(), n, room2, scales.row(y) + wide.skip);
            conv1x1<C>(wide.count(), n, room2, p.weight, bias(p.bias), blocked(z.row(y) + wide.skip * BLOCK, room2), 0, OUT_BLOCKS);
        }
        if (row < t.y0 - 1) continue;
        if (!inside(row)) clear(d.row(row), d.size);
        else {
            const float* own[OUT_BLOCKS][3];
            for (int block = 0; block < OUT_BLOCKS; block++) {
                const float* rows[3];
                for (int i = 0; i < 3; i++) {
                    rows[i] = z.row(row - 1 + i) + block * room2 * BLOCK;
                    own[block][i] = rows[i] + BLOCK;
                }
                float* to = out + block * room1 * BLOCK;
                if (!p.values) depthwise(rows, room1, p.depthwise + block * 9 * BLOCK, [to](V sum, Index at) { store(to + at, sum); });
            }
            float* to = d.row(row) + near.skip * BLOCK;
            if (p.values) {
                const Map from = row_of(p.dx1, p.W, row, near.from);
                copy_blocked(from.data, from.step, near.count(), C, dx1, room1);
                conv1x1<C>(near.count(), dx1, room1, p.mix_back, bias(zeros), blocked(to, room1), 0, OUT_BLOCKS);
            } else query_key_gradient<C>(p, out + near.skip * BLOCK, near.count(), room1, to);
            if (row >= t.y0 && row < t.y1)
                for (int block = 0; block < OUT_BLOCKS; block++)
                    outer_depthwise(own[block], d.row(row) + (block * room1 + 1) * BLOCK, width, sums + p.depthwise_at() + block * 9 * BLOCK);
        }
        if (done < t.y0) continue;
        for (int block = 0; block < OUT_BLOCKS; block++) {
            const Index at = block * room1 * BLOCK;
            const float* rows[3] = {d.row(done - 1) + at, d.row(done) + at, d.row(done + 1) + at};
            float* to = dz + block * width * BLOCK;
            depthwise(rows, width, p.depthwise_back + block * 9 * BLOCK, [to](V sum, Index at) { store(to + at, sum); });
            add_pixels(to, width, sums + p.bias_at() + block * BLOCK);
        }
        outer(width, dz, width, OUT_BLOCKS, normal.row(done) + 2 * BLOCK, room2, BLOCKS, sums, C);
        conv1x1<OUT>(width, dz, width, p.weight_back, bias(zeros), blocked(d_normal, width), 0, BLOCKS);
        const Map to = row_of(p.dx, p.W, done, t.x0), residual = p.values ? row_of(p.dx1, p.W, done, t.x0) : Map{nullptr, 0};
        normalise_back<C>(d_normal, width, normal.row(done) + 2 * BLOCK, room2, scales.row(done) + 2, residual.data, residual.step, width, to.data, to.step);
    }
}

void projection_any(const ProjectionGradient& p, Tile t, float* sums, float* scratch) {
    if (p.channels == CHANNELS) p.values ? projection<CHANNELS, CHANNELS>(p, t, sums, scratch) : projection<CHANNELS, 2 * CHANNELS>(p, t, sums, scratch);
    else p.values ? projection<2 * CHANNELS, 2 * CHANNELS>(p, t, sums, scratch) : projection<2 * CHANNELS, 4 * CHANNELS>(p, t, sums, scratch);
}

void tokens(const TokensGradient& p, Index y0, Index y1, float* sums, float* scratch) {
    static const float zeros[CHANNELS] = {};
    constexpr int BLOCKS = CHANNELS / BLOCK;
    float *d = scratch, *x = d + CHANNELS * p.W, *piece = x + CHANNELS * p.W;
    Index row = 0;  // the first grid row that shows image row y or a later one
    for (Index y = y0; y < y1; y++) {
        while (row < p.rows && p.pick_row[row] < y) row++;
        const bool shown = row < p.rows && p.pick_row[row] == y;
        const Map from = row_of(p.x, p.W, y, 0), to = row_of(p.dx, p.W, y, 0);
        clear(d, CHANNELS * p.W);
        for (Index r = row; r < p.rows && p.pick_row[r] == y; r++)
            for (Index start = 0; start < p.columns; start += PIECE) {
                const Index n = smaller(PIECE, p.columns - start);
                for (int block = 0; block < BLOCKS; block++) {
                    transpose(p.d_tokens + (block * BLOCK * p.rows + r) * p.columns + start, p.rows * p.columns, BLOCK, n, piece, BLOCK);
                    for (Index i = 0; i < n; i++) {
                        float* at = d + (block * p.W + p.pick_column[start + i]) * BLOCK;
                        store(at, load(at) + load(piece + i * BLOCK));
                        store(at + LANES, load(at + LANES) + load(piece + i * BLOCK + LANES));
                    }
                }
            }
        conv1x1<CHANNELS>(p.W, d, p.W, p.weight_back, bias(zeros), to_map(to.data, to.step), 0, BLOCKS);
        if (!shown) continue;
        copy_blocked(from.data, from.step, p.W, CHANNELS, x, p.W);
        outer(p.W, d, p.W, BLOCKS, x, p.W, BLOCKS, sums, CHANNELS);
        for (int block = 0; block < BLOCKS; block++) add_pixels(d + block * p.W * BLOCK, p.W, sums + CHANNELS * CHANNELS + block * BLOCK);
    }
}

void weights(const WeightsGradient& p, Index chunk) {
    for (Index n = chunk * CHUNK; n < smaller((chunk + 1) * CHUNK, p.N); n++) {
        V sums[HEADS];
        for (int h = 0; h < HEADS; h++) sums[h] = V{};
        for (int i = 0; i < TOKEN; i += LANES) {
            V token = load(p.tokens + n * TOKEN + i);
#pragma GCC unroll 8
            for (int h = 0; h < HEADS; h++) sums[h] += token * load(p.d_pooled + h * TOKEN + i);
        }
        for (int h = 0; h < HEADS; h++) p.d_weights[h * p.N + n] = sum_lanes(sums[h])[0];
    }
}

// Through w[n] = sum over l of share s[l][n], s = softmax: d score = share s (dw[n] - sum over n of s dw[n])
void scores(const ScoresGradient& p, Index head, float* scratch) {
    constexpr int BLOCKS = HEAD_WIDTH / BLOCK;
    float *factor = scratch, *total = factor + chunks(p.N) * BLOCK, *e = total + chunks(p.N) * BLOCK;
    const float *keys = p.keys + head * HEAD_WIDTH * p.N, *dw = p.d_weights + head * p.N;
    float* d_keys = p.d_keys + head * HEAD_WIDTH * p.N;
    clear(d_keys, HEAD_WIDTH * p.N);
    for (Index block = 0; block < p.query_blocks; block++) {
        const Index query = (head * p.query_blocks + block) * BLOCK;
        softmax_block(keys, p.N, p.query + query * HEAD_WIDTH, p.share + query, factor, total, e);
        for (int half = 0; half < BLOCK; half += LANES) {
            const V share = load(p.share + query + half);
            V mean = V{};
            for (Index n = 0; n < p.N; n++) {
                V weight = load(e + n * BLOCK + half) * load(factor + n / CHUNK * BLOCK + half);
                mean += weight * dw[n];
                store(e + n * BLOCK + half, weight);
            }
            mean = share > 0 ? mean / share : V{};  // share 0: not a text token, but one that fills the block
            for (Index n = 0; n < p.N; n++) store(e + n * BLOCK + half, load(e + n * BLOCK + half) * (dw[n] - mean));
        }
        float* d_query = p.d_query + query * HEAD_WIDTH;
        clear(d_query, BLOCK * HEAD_WIDTH);
        for (Index n0 = 0; n0 < p.N; n0 += CHUNK) {
            const Index n = smaller(CHUNK, p.N - n0);
            outer(n, e + n0 * BLOCK, n, 1, keys + n0 * BLOCK, p.N, BLOCKS, d_query, HEAD_WIDTH);
            float* to = d_keys + n0 * BLOCK;
            conv1x1<BLOCK>(n, e + n0 * BLOCK, n, p.query_back + query * HEAD_WIDTH, {to, BLOCK, p.N * BLOCK}, blocked(to, p.N), 0, BLOCKS);
        }
    }
}

void keys(const KeysGradient& p, Index group, float* sums, float* scratch) {
    float *tokens = scratch, *initial = tokens + TOKEN * CHUNK;
    for (Index chunk = group; chunk < chunks(p.N); chunk += p.groups) {
        const Index n0 = chunk * CHUNK, n = smaller(CHUNK, p.N - n0);
        for (Index i = 0; i < n; i++)
            for (int c = 0; c < TOKEN; c += LANES) {
                V sum = V{};
#pragma GCC unroll 8
                for (int h = 0; h < HEADS; h++) sum += p.weights[h * p.N + n0 + i] * load(p.d_pooled + h * TOKEN + c);
                store(initial + i * TOKEN + c, sum);
            }
        copy_blocked(p.tokens + n0 * TOKEN, TOKEN, n, TOKEN, tokens, n);
        conv1x1<TOKEN>(n, p.d_keys + n0 * BLOCK, p.N, p.weight_back, from_map(initial, TOKEN), to_map(p.d_tokens + n0 * TOKEN, TOKEN), 0, TOKEN / BLOCK);
        outer(n, p.d_keys + n0 * BLOCK, p.N, TOKEN / BLOCK, tokens, n, TOKEN / BLOCK, sums, TOKEN);
    }
}

// A grid row collects the gradients of the image rows that show it, so the text path's own gradients are made once per grid pixel
void guided(const GuidedGradient& g, Index row0, Index row1, float* sums, float* scratch) {
    static const float zeros[CHANNELS] = {};
    constexpr int BLOCKS = CHANNELS / BLOCK;
    const Guided& p = g.of;
    const bool few = p.W < p.columns;
    const Index columns = few ? p.W : p.columns;
    auto take = [&scratch](Index n) { float* p = scratch; scratch += n; return p; };
    float *by_channel = take(CHANNELS * columns), *s = take(CHANNELS * columns), *before = take(CHANNELS * columns), *after = take(CHANNELS * columns);
    float *path = take(CHANNELS * columns), *d = take(CHANNELS * columns);
    float *x = take(CHANNELS * PIECE), *initial = take(CHANNELS * PIECE), *out = take(CHANNELS * PIECE);
    V slope_sum = V{}, gated_slope_sum = V{};
    Index y = 0;
    for (Index row = row0; row < row1; row++) {
        while (y < p.H && p.show_row[y] < row) y++;
        for (int c = 0; c < CHANNELS; c++) clear(g.d_tokens + (c * p.rows + row) * p.columns, p.columns);
        if (y == p.H || p.show_row[y] != row) continue;

        gated_tokens(p, row, columns, by_channel, s);
        conv1x1<CHANNELS>(columns, s, columns, p.gated, bias(p.gated_bias), blocked(before, columns), 0, BLOCKS);
        for (Index i = 0; i < CHANNELS * columns; i += LANES) store(after + i, prelu(load(before + i), p.gated_slope));
        conv1x1<CHANNELS>(columns, after, columns, p.from_gated, bias(p.bias), to_map(path, CHANNELS), 0, BLOCKS);
        clear(d, CHANNELS * columns);
        for (; y < p.H && p.show_row[y] == row; y++)
            for (Index start = 0; start < p.W; start += PIECE) {
                const Index n = smaller(PIECE, p.W - start);
                const Map from = row_of(p.x, p.W, y, start), dy = row_of(g.dy, p.W, y, start), dx = row_of(g.dx, p.W, y, start);
                auto column = [&](Index i) { return few ? start + i : p.show_column[start + i]; };
                for (Index i = 0; i < n; i++)
                    for (int c = 0; c < CHANNELS; c += LANES) store(initial + i * CHANNELS + c, load(path + column(i) * CHANNELS + c));
                copy_blocked(from.data, from.step, n, CHANNELS, x, n);
                conv1x1<CHANNELS>(n, x, n, p.from_x, from_map(initial, CHANNELS), blocked(out, n), 0, BLOCKS);
                for (Index i = 0; i < n; i++)
                    for (int c = 0; c < CHANNELS; c += LANES) {
                        float *at = out + (c / BLOCK * n + i) * BLOCK + c % BLOCK, *collected = d + (c / BLOCK * columns + column(i)) * BLOCK + c % BLOCK;
                        V value = load(at), gradient = load(dy.data + i * dy.step + c);
                        slope_sum += value > 0 ? V{} : value * gradient;
                        gradient = value > 0 ? gradient : p.slope * gradient;
                        store(at, gradient);
                        store(collected, load(collected) + gradient);
                    }
                outer(n, out, n, BLOCKS, x, n, BLOCKS, sums, CHANNELS);
                conv1x1<CHANNELS>(n, out, n, g.from_x_back, bias(zeros), to_map(dx.data, dx.step), 0, BLOCKS);
            }
        for (int block = 0; block < BLOCKS; block++) add_pixels(d + block * columns * BLOCK, columns, sums + g.bias_at() + block * BLOCK);
        outer(columns, d, columns, BLOCKS, after, columns, BLOCKS, sums + g.from_gated_at(), CHANNELS);
        conv1x1<CHANNELS>(columns, d, columns, g.from_gated_back, bias(zeros), blocked(after, columns), 0, BLOCKS);
        for (Index i = 0; i < CHANNELS * columns; i += LANES) {
            V value = load(before + i), gradient = load(after + i);
            gated_slope_sum += value > 0 ? V{} : value * gradient;
            store(after + i, value > 0 ? gradient : p.gated_slope * gradient);
        }
        for (int block = 0; block < BLOCKS; block++) add_pixels(after + block * columns * BLOCK, columns, sums + g.gated_bias_at() + block * BLOCK);
        outer(columns, after, columns, BLOCKS, s, columns, BLOCKS, sums + g.gated_at(), CHANNELS);
        conv1x1<CHANNELS>(columns, after, columns, g.gated_back, bias(zeros), to_map(before, CHANNELS), 0, BLOCKS);  // of tokens times gate
        transpose(before, CHANNELS, columns, CHANNELS, by_channel, columns);
        for (int c = 0; c < CHANNELS; c++) {
            const Index start = (c * p.rows + row) * p.columns;
            for (Index i = 0; i < columns; i++) {
                const Index place = start + (few ? p.show_column[i] : i);
                g.d_tokens[place] = by_channel[c * columns + i] * p.gate[place % TOKEN];
                sums[g.gate_at() + place % TOKEN] += by_channel[c * columns + i] * p.tokens[place];
            }
        }
    }
    float* slopes = sums + g.slope_at();
    store(slopes, load(slopes) + slope_sum);
    store(slopes + BLOCK, load(slopes + BLOCK) + gated_slope_sum);
}

}  // namespace

extern const Gradients FILM_TABLE(gradients){conv_in, feed_forward_any, projection_any, tokens, weights, scores, keys, guided};

}  // namespace film
