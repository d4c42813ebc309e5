// A small network in training: its weights packed for one instruction set, Adam's moments, the steps.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "run.h"
#include "train.h"

namespace df::cpu {

struct LayerSpec {
    int n_in, n_out;
    bool bias;
    Function function;
    float param;
};

struct ChainSpec {
    std::vector<LayerSpec> layers;
    int table_rows = 0;  // of a condition
    bool table_trained = false;
};

struct TrainerOptions {
    bool decoupled;  // AdamW: weight decay apart from the gradient
    double weight_decay;
    double max_norm;  // of the gradient of all weights together; 0: any
    double average;   // decay of the average of the weights; 0: none
};

// Batches one after the other: all but the last have `batch` rows.
struct TrainCall {
    int64_t rows, batch;
    const float* x;                       // (rows, n_in)
    const float* target;                  // (rows, n_out)
    std::vector<const int64_t*> indices;  // of each condition (rows)
    const double* rates;                  // of each batch: lr
    float* losses;                        // of each batch: the mean squared error before its step

    int64_t steps() const { return (rows + batch - 1) / batch; }
};

struct CacheAligned {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float[], CacheAligned>;

class Trainer {
  public:
    // The conditions, then the trunk. A specification that is not one network throws std::invalid_argument.
    Trainer(const Kernels& kernels, std::vector<ChainSpec> chains, TrainerOptions options);

    // Of each chain in order: of each layer the weight (n_out, n_in) and the bias, where it has one, then of
    // a condition the table (rows, n_in of the first layer).
    void load(const std::vector<const float*>& parameters);
    // The weights, or their average; an untrained table is left alone.
    void store(const std::vector<float*>& parameters, bool average);

    // Trains on the batches in order -> how many were done: all, unless the poll stopped it. `threads` is an
    // upper limit and changes no bit.
    int64_t run(const TrainCall& call, int threads, Poll poll);

  private:
    struct Chain {
        std::vector<TrainLayer> layers;
        std::vector<float*> values, slopes;
        std::vector<int> strides;
        std::vector<Floats> memory;
        std::vector<int64_t> settled;  // in steps_
        TrainTable table{};
        float* input_gradient = nullptr;
    };

    void lay_out(const ChainSpec& spec, Chain& chain, bool trunk);
    void make_buffers(int64_t rows);
    void refresh_transposed();
    TrainView view() const;
    void plan_steps(const TrainCall& call);
    void settle_tables();
    template <class Use>
    void over_parameters(Use use) const;

    const Kernels& kernels_;
    std::vector<ChainSpec> specs_;
    TrainerOptions options_;
    std::vector<Chain> chains_;
    size_t n_parameters_ = 0;
    std::vector<TrainChain> views_;
    // Of the steps since the tables were last settled, and one more that holds the last sum of log_decays.
    std::vector<AdamStep> steps_;
    float peak_rate_ = 0.0f;  // in steps_
    int64_t n_weights_ = 0, n_padded_ = 0, n_transposed_ = 0, steps_done_ = 0, buffer_rows_ = 0;
    Floats weights_, gradient_, moment1_, moment2_, average_, transposed_, row_loss_;
};

}  // namespace df::cpu
