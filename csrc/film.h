// What the two source files share: the phases of the network as plain data.
//
// A feature map is channels-last: (H, W, C) with `step` floats from one pixel to the next, so that the maps of both images can lie
// side by side in one buffer and their concatenation costs nothing.
//
// A phase is cut into tasks (mostly tiles of the image) that may run in any order and on any thread. Where tasks overlap they compute the
// overlap twice, and where they add up they write partial sums, so the result does not depend on the number of threads.
#pragma once
#include <cstdint>

namespace film {

using Index = std::int64_t;

constexpr int HEADS = 8, CHANNELS = 32, TOKEN = 256, HEAD_WIDTH = TOKEN / HEADS;  // fixed by the method
constexpr Index PIECE = 64;  // pixels of a row that are handled together where tiles are not needed

struct Map { float* data; Index step; };
struct Tile { Index x0, x1, y0, y1; };  // columns [x0, x1) of rows [y0, y1)

// y = PReLU(conv3x3(x)), no bias; 1 or 32 channels in, 32 out
struct ConvIn {
    Map x, y;
    Index H, W, channels;
    const float* weight;  // packed
    float slope;
    Index scratch(Index width) const { return 3 * CHANNELS * (width + 2) + CHANNELS * width; }
};

// The sums over pixels that MDTA needs: q k^T and the squared norms of q and k, [q, k] = dwconv(weight LN(x) + bias)
struct Gram {
    Map x;
    Index H, W, channels;
    const float *weight, *bias, *depthwise;  // weight and depthwise packed
    // per tile: (heads, d, d) products, then C norms of q, then C norms of k
    Index sums_per_tile() const { return channels * channels / HEADS + 2 * channels; }
    Index scratch(Index width) const { return channels * (width + 2) + 6 * channels * (width + 2) + 2 * channels * width; }
};

// A Restormer block once its attention is known: x1 = x + mix v, y = x1 + GDFN(LN(x1)); what follows a block (1x1 convolution) can be done at once
struct Block {
    Map x, y;
    Index H, W, channels;
    const float *value, *value_bias, *value_depthwise;  // v = dwconv(value LN(x) + value_bias)
    const float *mix;                                   // project_out * attention
    const float *widen, *widen_bias, *widen_depthwise;  // GDFN; gate first, then value
    const float *narrow;
    const float *after, *after_bias;                    // 1x1 convolution of the block's output, or null
    Index after_channels;                               // 0: none; 32; 1: with a sigmoid, y is then the image
    Index scratch(Index width) const { return channels * (5 * (width + 4) + 3 * (width + 2) + 24 * (width + 2) + 4 * width + 2 * width) + 64 * width; }
};

// Features on the text's grid, as rows of tokens: u = conv1x1(x) at the picked pixels, channel by channel
struct Tokens {
    Map x;
    const std::int64_t *pick_row, *pick_column;  // (rows), (columns): image pixel shown by each grid pixel
    Index W, rows, columns;
    const float *weight, *bias;
    float* tokens;  // (32, rows, columns)
    Index scratch() const { return 2 * CHANNELS * PIECE; }
};

// keys of all heads: k = weight token (the bias cancels in the softmax). Queries too: their tokens are those of the text.
struct Keys {
    const float* tokens;  // (N, 256)
    Index N;
    const float* weight;  // packed
    float* keys;          // per head (32, N), in the kernel's own layout
    static constexpr Index CHUNK = 48;
    Index tasks() const { return (N + CHUNK - 1) / CHUNK; }
    Index scratch() const { return TOKEN * CHUNK; }
};

// attention weights of one head for a group of queries, averaged with their shares
struct Weights {
    const float* keys;
    Index N;
    const float *query, *share;    // packed per head: (heads, L padded to whole blocks)
    Index query_blocks, groups;    // a task is one head and every groups-th block of queries
    float* weights;                // (heads, groups, N)
    static constexpr Index CHUNK = 128;
    Index chunks() const { return (N + CHUNK - 1) / CHUNK; }
    Index tasks() const { return HEADS * groups; }
    Index scratch(Index block) const { return (N + 2 * chunks()) * block; }
};

// pooled = weights tokens, a slice of the 256 columns at a time
struct Pool {
    const float *tokens, *weights;  // (N, 256), (heads, N)
    Index N;
    float* pooled;                  // (heads, 256)
};

// y = PReLU(conv1x1([x, p + x])), p = PReLU(conv1x1(gated tokens shown at the image's size)); y may be x
struct Guided {
    Map x, y;
    Index H, W;
    const float *tokens, *gate;                  // (32, rows, columns), (256)
    const std::int64_t *show_row, *show_column;  // (H), (W): grid pixel that each image pixel shows
    Index rows, columns;
    const float *gated, *gated_bias;             // packed 1x1
    float gated_slope;
    const float *from_gated, *from_x, *bias;     // conv1x1([x, p + x]) = from_x x + from_gated p + bias
    float slope;
    Index scratch() const { return CHANNELS * (3 * columns + 2 * PIECE); }
};

// The same arithmetic, compiled for one instruction set
struct Kernels {
    const char* name;
    Index block;  // channels (or queries) that are computed together; packed weights are in blocks of so many outputs
    void (*conv_in)(const ConvIn&, Tile, float* scratch);
    void (*gram)(const Gram&, Tile, double* sums, float* scratch);
    void (*restormer)(const Block&, Tile, float* scratch);
    void (*tokens)(const Tokens&, Index row, float* scratch);
    void (*keys)(const Keys&, Index task, float* scratch);
    void (*weights)(const Weights&, Index task, float* scratch);
    void (*pool)(const Pool&, Index slice);
    void (*guided)(const Guided&, Index y0, Index y1, float* scratch);
};

extern const Kernels plain_kernels, avx2_kernels, avx512_kernels;

}  // namespace film
