// The phases of one training step (train.h), each on a share of the rows or of the weights.
#pragma once
#include "adam.h"
#include "train_linear.h"
#include "wide.h"

namespace df::DF_ISA {

using cpu::TrainBatch;
using cpu::TrainChain;
using cpu::TrainLayer;
using cpu::TrainUnit;
using cpu::TrainView;

// Rows of a chain's buffers.
DF_INLINE float* values_at(const TrainChain& c, int level, int64_t row) {
    return c.values[level] + row * c.strides[level];
}
DF_INLINE float* slopes_at(const TrainChain& c, int layer, int64_t row) {
    return c.slopes[layer] + row * c.strides[layer + 1];
}

// y = x W, on top of what is there or of the bias.
template <Start S>
static void multiply(const TrainView& v, const TrainLayer& l, Left x, float* y, int64_t y_step, int rows) {
    for (int j = 0, width; j < l.n_out_padded; j += width) {
        width = panel_width(l.n_out_padded, j);
        const float* w = v.weights + l.weights + int64_t(j) * (l.n_in + l.bias);
        product<S, Finish::kStore>(width, rows, l.n_in, x, w + (l.bias ? width : 0), width, w, y + j, y_step);
    }
}

// dx (times what is there: the derivative of the layer before) = dy W^T.
template <Finish F>
static void multiply_back(const TrainView& v, const TrainLayer& l, Left dy, float* dx, int64_t dx_step,
                          int rows) {
    for (int k = 0, width; k < l.n_in_padded; k += width) {
        width = panel_width(l.n_in_padded, k);
        const float* w = v.transposed + l.transposed + int64_t(k) * l.n_out;
        product<Start::kZero, F>(width, rows, l.n_out, dy, w, width, nullptr, dx + k, dx_step);
    }
}

// sums -> values and slopes
static void activate_rows(const TrainLayer& l, float* y, float* slope, int64_t step, int rows) {
    for (int n = 0; n < rows; ++n, y += step, slope += step)
        apply_with_slope(l.function, l.param, y, y, slope, l.n_out_padded);
}

// The layers from number `from` on; the last layer of a condition answers bare sums.
static void forward_layers(const TrainView& v, const TrainChain& c, const float* x, int64_t x_step, int from,
                           int first, int rows, bool bare) {
    for (int i = 0; i < c.n_layers; ++i) {
        const TrainLayer& l = c.layers[i];
        float* y = values_at(c, i + 1, first);
        const int64_t step = c.strides[i + 1];
        const Left left =
            i ? Left{values_at(c, i, first), c.strides[i], 1} : Left{x + first * x_step, x_step, 1};
        if (i < from)
            multiply<Start::kMemory>(v, l, left, y, step, rows);
        else if (l.bias)
            multiply<Start::kBias>(v, l, left, y, step, rows);
        else
            multiply<Start::kZero>(v, l, left, y, step, rows);
        if (!bare || i + 1 < c.n_layers) activate_rows(l, y, slopes_at(c, i, first), step, rows);
    }
}

// From the gradient by the last layer's sums to those by the others' and by a trained input.
static void backward_layers(const TrainView& v, const TrainChain& c, int first, int rows) {
    for (int i = c.n_layers - 1; i > 0; --i)
        multiply_back<Finish::kMultiply>(v, c.layers[i], {slopes_at(c, i, first), c.strides[i + 1], 1},
                                         slopes_at(c, i - 1, first), c.strides[i], rows);
    if (c.input_gradient)
        multiply_back<Finish::kStore>(v, c.layers[0], {slopes_at(c, 0, first), c.strides[1], 1},
                                      c.input_gradient + int64_t(first) * c.strides[0], c.strides[0], rows);
}

static void condition_forward(const TrainView& v, const TrainBatch& b, int number, int first, int last) {
    const TrainChain& c = v.chains[number];
    for (int u = first; u < last; ++u) {
        const int64_t row = b.uses[number].table_rows[u];
        if (c.table.trained) settle_row(v, c.table, row, b.step);
        memcpy(values_at(c, 0, u), v.weights + c.table.offset + row * c.table.stride,
               size_t(c.table.width) * sizeof(float));
    }
    forward_layers(v, c, c.values[0], c.strides[0], 0, first, last - first, true);
}

// The sums of the trunk's first layer before its input: the bias and what the conditions add.
static void start_of_sums(const TrainView& v, const TrainBatch& b, const TrainChain& trunk, int first,
                          int last) {
    const TrainLayer& l = trunk.layers[0];
    for (int j = 0, width; j < l.n_out_padded; j += width) {
        width = panel_width(l.n_out_padded, j);
        const float* bias = v.weights + l.weights + int64_t(j) * (l.n_in + l.bias);
        for (int n = first; n < last; ++n)
            for (int i = 0; i < width; i += W) {
                vf sum = l.bias ? load(bias + i) : splat(0.0f);
                for (int c = 0; c < v.n_conditions; ++c)
                    sum += load(values_at(v.chains[c], v.chains[c].n_layers, b.uses[c].slot[n]) + j + i);
                store(values_at(trunk, 1, n) + j + i, sum);
            }
    }
}

// The squared error of each row, and the derivative of their mean by the sums of the last layer.
static void loss(const TrainView& v, const TrainBatch& b, const TrainChain& trunk, int first, int last) {
    const int top = trunk.n_layers - 1, n_out = trunk.layers[top].n_out;
    const float scale = 2.0f / (float(b.rows) * float(n_out));
    for (int n = first; n < last; ++n) {
        const float *y = values_at(trunk, top + 1, n), *target = b.target + int64_t(n) * n_out;
        float *slope = slopes_at(trunk, top, n), sum = 0.0f;
        for (int j = 0; j < n_out; ++j) {
            const float error = y[j] - target[j];
            sum += error * error;
            slope[j] *= error * scale;
        }
        for (int j = n_out; j < trunk.layers[top].n_out_padded; ++j) slope[j] = 0.0f;
        v.row_loss[n] = sum;
    }
}

static void trunk(const TrainView& v, const TrainBatch& b, int first, int last) {
    const TrainChain& c = v.chains[v.n_conditions];
    if (v.n_conditions) start_of_sums(v, b, c, first, last);
    forward_layers(v, c, b.x, c.layers[0].n_in, v.n_conditions ? 1 : 0, first, last - first, false);
    loss(v, b, c, first, last);
    backward_layers(v, c, first, last - first);
}

// The gradient by a condition's sums: that by the trunk's first, added over the rows that share it.
static void condition_backward(const TrainView& v, const TrainBatch& b, int number, int first, int last) {
    const TrainChain &c = v.chains[number], &trunk = v.chains[v.n_conditions];
    const cpu::TrainUse& use = b.uses[number];
    for (int u = first; u < last; ++u) {
        float* sum = slopes_at(c, c.n_layers - 1, u);
        const int32_t *member = use.members + use.begin[u], *end = use.members + use.begin[u + 1];
        for (int j = 0; j < trunk.layers[0].n_out_padded; j += W) {
            vf s = splat(0.0f);
            for (const int32_t* n = member; n < end; ++n) s += load(slopes_at(trunk, 0, *n) + j);
            store(sum + j, s);
        }
    }
    backward_layers(v, c, first, last - first);
}

// Where a unit's weights begin, and how many there are.
struct UnitRange {
    int64_t at, count;
    int width, column;
};
DF_INLINE UnitRange range_of(const TrainLayer& l, const TrainUnit& u) {
    const int column = u.panel * kPanel, width = panel_width(l.n_out_padded, column);
    const int rows_before = u.k_begin ? u.k_begin + l.bias : 0;
    return {l.weights + int64_t(column) * (l.n_in + l.bias) + int64_t(rows_before) * width,
            int64_t(u.k_end + l.bias - rows_before) * width, width, column};
}

static void gradient(const TrainView& v, const TrainBatch& b, const TrainUnit& u) {
    const TrainChain& c = v.chains[u.chain];
    const TrainLayer& l = c.layers[u.layer];
    const UnitRange range = range_of(l, u);
    const bool is_trunk = u.chain == v.n_conditions;
    const int rows = is_trunk ? b.rows : b.uses[u.chain].count;
    const float* x = is_trunk && u.layer == 0 ? b.x : c.values[u.layer];
    const int64_t x_step = is_trunk && u.layer == 0 ? l.n_in : c.strides[u.layer];
    const float* dy = slopes_at(c, u.layer, 0) + range.column;
    float* to = v.gradient + range.at;
    if (l.bias && u.k_begin == 0) {
        column_sums(range.width, rows, dy, c.strides[u.layer + 1], to);
        to += range.width;
    }
    product<Start::kZero, Finish::kStore>(range.width, u.k_end - u.k_begin, rows, {x + u.k_begin, 1, x_step},
                                          dy, c.strides[u.layer + 1], nullptr, to, range.width);
}

DF_INLINE double sum_of_squares(const float* x, int64_t count) {
    vf sum = splat(0.0f);
    for (int64_t i = 0; i < count; i += W) sum = fma(load(x + i), load(x + i), sum);
    double total = 0.0;
    for (int i = 0; i < W; ++i) total += double(sum[i]);
    return total;
}

static double gradient_square(const TrainView& v, const TrainUnit& u) {
    const UnitRange range = range_of(v.chains[u.chain].layers[u.layer], u);
    return sum_of_squares(v.gradient + range.at, range.count);
}

static double row_square(const TrainView& v, int number, int row) {
    const TrainChain& c = v.chains[number];
    return sum_of_squares(c.input_gradient + int64_t(row) * c.strides[0], c.table.stride);
}

// The unit's part of the copy with inputs and outputs exchanged, by blocks of four inputs.
static void transpose(const TrainView& v, const TrainLayer& l, const TrainUnit& u) {
    const UnitRange range = range_of(l, u);
    const float* w = v.weights + range.at + (l.bias && u.k_begin == 0 ? range.width : 0);
    const int columns = l.n_out - range.column < range.width ? l.n_out - range.column : range.width;
    for (int k = u.k_begin; k < u.k_end; k += 4, w += 4 * range.width) {
        const int count = u.k_end - k < 4 ? u.k_end - k : 4;  // zeros beyond, where the padding is
        const int first = k / kPanel * kPanel, width = panel_width(l.n_in_padded, first);
        float* to = v.transposed + l.transposed + int64_t(first) * l.n_out + (k - first) +
                    int64_t(range.column) * width;
        for (int j = 0; j < columns; j += W) {
            vf z[4] = {}, rows[4];
            for (int i = 0; i < count; ++i) z[i] = load(w + i * range.width + j);
            transpose4(z, rows);
            float pieces[4][W];
            memcpy(pieces, rows, sizeof(pieces));
            for (int i = 0; i < W && j + i < columns; ++i)
                memcpy(to + (j + i) * width, pieces[i % 4] + i / 4 * 4, 4 * sizeof(float));
        }
    }
}

static void update(const TrainView& v, const TrainBatch& b, const TrainUnit& u, float scale) {
    const TrainLayer& l = v.chains[u.chain].layers[u.layer];
    const UnitRange range = range_of(l, u);
    adam_range(v, range.at, range.count, v.gradient + range.at, scale, v.steps[b.step]);
    if (l.transposed >= 0) transpose(v, l, u);
}

static void update_rows(const TrainView& v, const TrainBatch& b, int number, int first, int last,
                        float scale) {
    const TrainChain& c = v.chains[number];
    for (int u = first; u < last; ++u) {
        const int64_t row = b.uses[number].table_rows[u];
        adam_range(v, c.table.offset + row * c.table.stride, c.table.stride,
                   c.input_gradient + int64_t(u) * c.strides[0], scale, v.steps[b.step]);
        c.table.settled[row] = b.step + 1;
    }
}

static void settle(const TrainView& v, int number, int first, int last, int64_t step) {
    for (int row = first; row < last; ++row) settle_row(v, v.chains[number].table, row, step);
}

}  // namespace df::DF_ISA
