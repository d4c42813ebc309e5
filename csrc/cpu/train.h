// Training a small network of linear layers, laid out for one instruction set: what the kernels of a step
// are called with. Owned by Trainer (trainer.h).
//
// The network is a trunk of layers on the rows of a batch. Beside its input x each row may have conditions:
// row i of a table (a time embedding, a class embedding), led through layers of its own, whose last one is
// added to the sums of the trunk's first layer. A condition is evaluated once for each distinct row of its
// table that a batch uses, however many rows of the batch share it.
#pragma once
#include <cstdint>

#include "../plan.h"

namespace df::cpu {

// Weights lie in panels of outputs, all but the last Kernels.panel wide, the last perhaps one vector: of each
// the bias, where there is one, then [n_in][width]. The copy for the gradient of the input is the same with
// inputs and outputs exchanged and no bias. Padding is zero and stays so.
struct TrainLayer {
    int n_in, n_in_padded, n_out, n_out_padded;
    bool bias;
    Function function;
    float param;
    int64_t weights;     // in TrainView.weights
    int64_t transposed;  // in TrainView.transposed, or -1: the gradient of the input is not needed
};

// A table of rows, at `offset` in TrainView.weights.
struct TrainTable {
    int64_t offset;
    int rows, width, stride;
    bool trained;
    int64_t* settled;  // (rows): steps in TrainView.steps that the row has been through
};

// The trunk or a condition. Strides are odd in cache lines, so that a column does not fall into few cache
// sets.
struct TrainChain {
    const TrainLayer* layers;
    int n_layers;
    float* const* values;   // [0]: the input's rows; [l + 1]: what layer l answers
    float* const* slopes;   // [l]: its derivative by the layer's sums, then the loss's
    const int* strides;     // of values[l] and slopes[l - 1]
    float* input_gradient;  // of a trained table, with strides[0], else null
    TrainTable table;       // of a condition
};

// The coefficients of one step of Adam (Kingma & Ba 2015, algorithm 1; decoupled decay: Loshchilov & Hutter
// 2019, algorithm 2).
struct AdamStep {
    float rate;            // lr / (1 - beta1^k)
    float root_scale;      // 1 / sqrt(1 - beta2^k)
    float shrink;          // 1 - lr decay, of decoupled decay, else 1
    float average_weight;  // 1 - the decay of the average
    double log_decays;     // the sum of the logarithms of the average's decays over the steps before
};

constexpr double kBeta1 = 0.9, kBeta2 = 0.999;

struct AdamOptions {
    float l2;         // weight decay that is added to the gradient
    bool average;     // whether TrainView.average is kept
    bool fades;       // no weight decay: without a gradient a weight soon stands still
    float peak_rate;  // the highest AdamStep.rate in TrainView.steps
};

// The distinct rows of a condition's table in one batch, in order of first use.
struct TrainUse {
    int count;
    const int32_t* table_rows;  // (count)
    const int32_t* slot;        // (rows of the batch): which of them
    const int32_t* begin;       // (count + 1): where in `members` the rows of the batch that share it are
    const int32_t* members;     // (rows of the batch), ascending in each
};

struct TrainBatch {
    int64_t step;  // in TrainView.steps
    int rows;
    const float* x;        // (rows, n_in)
    const float* target;   // (rows, n_out)
    const TrainUse* uses;  // one for each condition
};

// Rows [k_begin, k_end) of one panel of a layer's weights, with the bias if k_begin is 0.
struct TrainUnit {
    int chain, layer, panel, k_begin, k_end;
};

struct TrainView {
    const TrainChain* chains;  // the conditions, then the trunk
    int n_conditions;
    float *weights, *gradient, *moment1, *moment2, *average;  // alike; gradient without the tables
    float* transposed;
    float* row_loss;  // (rows of a batch): the sums of squared errors
    const AdamStep* steps;
    AdamOptions adam;
};

struct TrainKernels {
    int panel;  // floats
    // Rows [first, last) of the distinct rows of condition c: brings the table up to date and evaluates.
    void (*condition_forward)(const TrainView&, const TrainBatch&, int c, int first, int last);
    // Rows [first, last) of the batch: forward, the loss, and its derivatives by the sums of every layer.
    void (*trunk)(const TrainView&, const TrainBatch&, int first, int last);
    void (*condition_backward)(const TrainView&, const TrainBatch&, int c, int first, int last);
    // The gradient of a unit, and of rows of a trained table the one already there -> the sum of squares.
    void (*gradient)(const TrainView&, const TrainBatch&, const TrainUnit&);
    double (*gradient_square)(const TrainView&, const TrainUnit&);
    double (*row_square)(const TrainView&, int c, int row);
    // Adam with the gradient times `scale`.
    void (*update)(const TrainView&, const TrainBatch&, const TrainUnit&, float scale);
    void (*update_rows)(const TrainView&, const TrainBatch&, int c, int first, int last, float scale);
    // Rows [first, last) of a trained table: the steps up to `step` in which a row was not used.
    void (*settle)(const TrainView&, int c, int first, int last, int64_t step);
};

}  // namespace df::cpu
