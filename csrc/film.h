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

constexpr Index CHUNK = 96;  // tokens that are handled together
constexpr Index chunks(Index N) { return (N + CHUNK - 1) / CHUNK; }

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
    // added up: (heads, d, d) products, then C norms of q, then C norms of k
    Index sums() const { return channels * channels / HEADS + 2 * channels; }
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
    Index tasks() const { return chunks(N); }
    Index scratch() const { return TOKEN * CHUNK; }
};

// attention weights of one head for a group of queries, averaged with their shares
struct Weights {
    const float* keys;
    Index N;
    const float *query, *share;    // packed per head: (heads, L padded to whole blocks)
    Index query_blocks, groups;    // a task is one head and every groups-th block of queries
    float* weights;                // (heads, groups, N)
    Index tasks() const { return HEADS * groups; }
    Index scratch(Index block) const { return (N + 2 * chunks(N)) * block; }
};

// pooled = weights tokens, a chunk of tokens at a time
struct Pool {
    const float *tokens, *weights;  // (N, 256), (heads, N)
    Index N;
    float* pooled;                  // (chunks, heads, 256), to be added up
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
    void (*pool)(const Pool&, Index chunk);
    void (*guided)(const Guided&, Index y0, Index y1, float* scratch);
};

extern const Kernels plain_kernels, avx2_kernels, avx512_kernels;

// ---- training ------------------------------------------------------------------------------------------------------------------
//
// From the gradient of a phase's output, those of its input and its weights. Nothing but the phase's input was kept: what lies between is made
// again, tile by tile. A tile adds its part of the weights' gradients to `sums` (float32, zero before), in blocked layouts.

// (outputs, inputs) gradient of a product: [block of outputs][input][output in the block]; depthwise [block][9][channel]; bias [channel]
struct ConvInGradient {
    Map x, dy, dx;         // dx only with 32 channels
    Index H, W, channels;
    const float *weight, *weight_back;  // packed; back: turned round and transposed
    float slope;
    // sums: per tap (32, 32), or (32, nine neighbours padded to whole blocks) with 1 channel; then a block of slopes
    Index weights(Index block) const { return channels == 1 ? CHANNELS * ((9 + block - 1) / block * block) : 9 * CHANNELS * CHANNELS; }
    Index sums(Index block) const { return weights(block) + block; }
    Index scratch(Index width) const { return CHANNELS * (4 * (width + 4) + 4 * (width + 2) + 2 * width); }
};

// x1 = x + mix v, y = x1 + GDFN(LN(x1)): dy -> dx1
struct FeedForwardGradient {
    Map x, dy, dx1;
    Index H, W, channels;
    const float *value, *value_bias, *value_depthwise, *mix;
    const float *widen, *widen_bias, *widen_depthwise;
    const float *narrow_back, *widen_back, *widen_depthwise_back;  // transposed; taps turned round
    // sums: widen (8C, C), its bias, its depthwise, narrow (C, 4C), mix (C, C)
    Index bias_at() const { return 8 * channels * channels; }
    Index depthwise_at() const { return bias_at() + 8 * channels; }
    Index narrow_at() const { return depthwise_at() + 72 * channels; }
    Index mix_at() const { return narrow_at() + 4 * channels * channels; }
    Index sums() const { return mix_at() + channels * channels; }
    Index scratch(Index width) const { return channels * (4 * (width + 6) + 32 * (width + 4) + 26 * (width + 2) + 11 * width) + 3 * (width + 4) + 128 * (width + 2); }
};

// o = dwconv(weight LN(x) + bias): do -> dx. For values (C of them) do = mix^T dx1, and dx1 is added to dx; for queries and keys (2C of them)
// do follows from the gradients of their sums over pixels.
struct ProjectionGradient {
    Map x, dx1, dx;
    Index H, W, channels;
    bool values;
    const float *weight, *bias, *depthwise, *weight_back, *depthwise_back;
    const float *mix_back;                // values
    const float *products, *products_t;   // queries and keys: gradients of q k^T (heads, d, d) and their transposes
    const float *squares;                 // twice the gradients of the squared norms of q (C), of k (C)
    Index outputs() const { return values ? channels : 2 * channels; }
    // sums: weight (outputs, C), bias, depthwise
    Index bias_at() const { return outputs() * channels; }
    Index depthwise_at() const { return bias_at() + outputs(); }
    Index sums() const { return depthwise_at() + 9 * outputs(); }
    Index scratch(Index width) const { return channels * (3 * (width + 4) + 4 * width + (width + 2)) + outputs() * (3 * (width + 4) + 4 * (width + 2) + width) + 3 * (width + 4); }
};

// u = tokens(x): d_tokens -> dx. The forward phase with image and grid exchanged: an image row collects the grid rows that show it.
struct TokensGradient {
    Map x, dx;
    const std::int64_t *pick_row, *pick_column;
    Index H, W, rows, columns;
    const float* weight_back;
    const float* d_tokens;
    // sums: weight (32, 32), bias
    Index sums() const { return CHANNELS * CHANNELS + CHANNELS; }
    Index scratch() const { return CHANNELS * (2 * W + PIECE); }
};

// pooled = weights tokens: the gradient of the weights of all heads, a chunk of tokens at a time
struct WeightsGradient {
    const float *tokens, *d_pooled;  // (N, 256), (heads, 256)
    Index N;
    float* d_weights;                // (heads, N)
};

// weights = mean over queries of softmax(query key): one head at a time, to its queries and its keys
struct ScoresGradient {
    const float* keys;
    Index N;
    const float *query, *share;  // as in Weights
    const float* query_back;     // packed the other way: per head and block of queries, products from queries to a head's channels
    Index query_blocks;
    const float* d_weights;      // (heads, N)
    float *d_keys, *d_query;     // d_keys as keys; d_query (heads, blocks of queries, 32, block)
    Index scratch(Index block) const { return (N + 2 * chunks(N)) * block; }
};

// keys = weight tokens and pooled = weights tokens: to the tokens; every groups-th chunk of tokens is a task
struct KeysGradient {
    const float *tokens, *d_keys, *weight_back;
    const float *weights, *d_pooled;  // (heads, N), (heads, 256)
    Index N, groups;
    float* d_tokens;
    // sums: weight (256, 256)
    Index sums() const { return TOKEN * TOKEN; }
    Index scratch() const { return 2 * TOKEN * CHUNK; }
};

struct GuidedGradient {
    Guided of;                // its y is not used
    Map dy, dx;
    const float *gated_back, *from_gated_back, *from_x_back;
    float* d_tokens;          // (32, rows, columns)
    // sums: from_x, from_gated, gated (32, 32), the biases of the outer and of the gated convolution, gate (256), blocks of the outer and the gated slope
    Index from_gated_at() const { return CHANNELS * CHANNELS; }
    Index gated_at() const { return 2 * CHANNELS * CHANNELS; }
    Index bias_at() const { return 3 * CHANNELS * CHANNELS; }
    Index gated_bias_at() const { return bias_at() + CHANNELS; }
    Index gate_at() const { return gated_bias_at() + CHANNELS; }
    Index slope_at() const { return gate_at() + TOKEN; }
    Index sums(Index block) const { return slope_at() + 2 * block; }
    Index scratch() const { return CHANNELS * (6 * of.columns + 3 * PIECE); }
};

struct Gradients {
    void (*conv_in)(const ConvInGradient&, Tile, float* sums, float* scratch);
    void (*feed_forward)(const FeedForwardGradient&, Tile, float* sums, float* scratch);
    void (*projection)(const ProjectionGradient&, Tile, float* sums, float* scratch);
    void (*tokens)(const TokensGradient&, Index y0, Index y1, float* sums, float* scratch);
    void (*weights)(const WeightsGradient&, Index chunk);
    void (*scores)(const ScoresGradient&, Index head, float* scratch);
    void (*keys)(const KeysGradient&, Index group, float* sums, float* scratch);
    void (*guided)(const GuidedGradient&, Index row0, Index row1, float* sums, float* scratch);
};

extern const Gradients plain_gradients, avx2_gradients, avx512_gradients;

}  // namespace film
