// Fusing: the arithmetic of the network without gradients.
#include "vectors.h"

namespace film {
namespace {

template <int N> struct Number { static constexpr int value = N; };

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
            gather_neighbours(p.x, p.H, p.W, y, t.x0, width, rows);
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
    const Index n0 = task * CHUNK, n = smaller(CHUNK, p.N - n0);
    copy_blocked(p.tokens + n0 * TOKEN, TOKEN, n, TOKEN, scratch, CHUNK);
    for (int head = 0; head < HEADS; head++)
        conv1x1<TOKEN>(n, scratch, CHUNK, p.weight + head * HEAD_WIDTH * TOKEN, bias(zeros),
                       blocked(p.keys + head * HEAD_WIDTH * p.N + n0 * BLOCK, p.N), 0, HEAD_WIDTH / BLOCK);
}

void weights(const Weights& p, Index task, float* scratch) {
    const Index head = task / p.groups, group = task % p.groups;
    float *factor = scratch, *total = factor + chunks(p.N) * BLOCK, *e = total + chunks(p.N) * BLOCK;
    float* result = p.weights + task * p.N;
    clear(result, p.N);
    for (Index block = group; block < p.query_blocks; block += p.groups) {
        const Index query = (head * p.query_blocks + block) * BLOCK;  // first of BLOCK text tokens
        softmax_block(p.keys + head * HEAD_WIDTH * p.N, p.N, p.query + query * HEAD_WIDTH, p.share + query, factor, total, e);
        for (Index n = 0; n < p.N; n++) {
            const float* by = factor + n / CHUNK * BLOCK;
            result[n] += sum_lanes(load(e + n * BLOCK) * load(by) + load(e + n * BLOCK + LANES) * load(by + LANES))[0];
        }
    }
}

void pool(const Pool& p, Index chunk) {
    const Index n0 = chunk * CHUNK, n1 = smaller(n0 + CHUNK, p.N);
    float* sums = p.pooled + chunk * HEADS * TOKEN;
    clear(sums, HEADS * TOKEN);
    auto add = [&](Index n, auto tokens) {  // several tokens at a time, since the sums go through memory
        constexpr int T = decltype(tokens)::value;
        for (Index column = 0; column < TOKEN; column += LANES) {
            V token[T];
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) token[t] = load(p.tokens + (n + t) * TOKEN + column);
            for (int h = 0; h < HEADS; h++) {
                V sum = load(sums + h * TOKEN + column);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) sum += p.weights[h * p.N + n + t] * token[t];
                store(sums + h * TOKEN + column, sum);
            }
        }
    };
    Index n = n0;
    for (; n + 4 <= n1; n += 4) add(n, Number<4>{});
    for (; n < n1; n++) add(n, Number<1>{});
}

void guided(const Guided& p, Index y0, Index y1, float* scratch) {
    const bool few = p.W < p.columns;  // then only the grid's columns that are shown
    const Index columns = few ? p.W : p.columns;
    float *s = scratch, *g = s + CHANNELS * columns, *path = g + CHANNELS * columns, *x = path + CHANNELS * columns, *sum = x + CHANNELS * PIECE;
    Index ready = -1;                  // the grid row whose text path is in `path`
    for (Index y = y0; y < y1; y++) {
        if (p.show_row[y] != ready) {
            ready = p.show_row[y];
            gated_tokens(p, ready, columns, g, s);
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

extern const Kernels FILM_TABLE(kernels){FILM_NAME, BLOCK, conv_in, gram_any, restormer_any, tokens, keys, weights, pool, guided};

}  // namespace film
