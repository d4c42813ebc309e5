#include "trainer.h"

#include <algorithm>
#include <cmath>

#include "../bind_checks.h"
#include "floating_point.h"

namespace df::cpu {
namespace {

constexpr int kMaxWidth = 1 << 16, kMaxLayers = 256;

Floats zeros(int64_t count) {
    Floats memory(new (std::align_val_t(64)) float[size_t(count)]());
    return memory;
}

int padded(int width, int lanes) { return (width + lanes - 1) / lanes * lanes; }
int stride(int width) { return ((width + 15) / 16 | 1) * 16; }  // an odd number of cache lines

// Where element (k, j) of a layer lies among its weights; k = -1 is the bias.
struct Panels {
    int rows, bias, columns_padded, panel, lanes;

    int64_t at(int k, int j) const {
        const int first = j / panel * panel, width = columns_padded - first < panel ? lanes : panel;
        return int64_t(first) * (rows + bias) + int64_t(k + bias) * width + (j - first);
    }
};

void check(const std::vector<ChainSpec>& chains) {
    require(!chains.empty(), "layers: none");
    for (const ChainSpec& chain : chains) {
        const bool trunk = &chain == &chains.back();
        require(!chain.layers.empty() && chain.layers.size() <= kMaxLayers, "layers: none, or too many");
        require((chain.table_rows > 0) != trunk, "layers: a condition has a table, the trunk has none");
        for (const LayerSpec& l : chain.layers) {
            require(l.n_in >= 1 && l.n_in <= kMaxWidth && l.n_out >= 1 && l.n_out <= kMaxWidth,
                    "layers: a width out of range");
            require(l.function <= Function::kMish, "layers: not an activation that can be trained");
            require(&l == &chain.layers[0] || l.n_in == (&l)[-1].n_out, "layers: widths that do not meet");
        }
        const LayerSpec& last = chain.layers.back();
        require(trunk || (last.n_out == chains.back().layers[0].n_out && !last.bias &&
                          last.function == Function::kIdentity),
                "layers: a condition ends in plain sums of the trunk's first layer");
    }
}

}  // namespace

Trainer::Trainer(const Kernels& kernels, std::vector<ChainSpec> chains, TrainerOptions options)
    : kernels_(kernels), specs_(std::move(chains)), options_(options), chains_(specs_.size()) {
    check(specs_);
    for (size_t i = 0; i < chains_.size(); ++i) lay_out(specs_[i], chains_[i], i + 1 == chains_.size());
    for (size_t i = 0; i + 1 < chains_.size(); ++i) {  // after all layers, which alone have a gradient buffer
        const ChainSpec& spec = specs_[i];
        const int width = spec.layers[0].n_in, step = padded(width, kernels_.lanes);
        chains_[i].table = {n_padded_, spec.table_rows, width, step, spec.table_trained, nullptr};
        chains_[i].settled.assign(size_t(spec.table_rows), 0);
        chains_[i].table.settled = chains_[i].settled.data();
        if (i == 0) gradient_ = zeros(n_padded_);
        n_padded_ += int64_t(spec.table_rows) * step;
    }
    if (!gradient_) gradient_ = zeros(n_padded_);
    weights_ = zeros(n_padded_);
    moment1_ = zeros(n_padded_);
    moment2_ = zeros(n_padded_);
    if (options_.average > 0.0) average_ = zeros(n_padded_);
    transposed_ = zeros(n_transposed_);
}

void Trainer::lay_out(const ChainSpec& spec, Chain& chain, bool trunk) {
    const int lanes = kernels_.lanes;
    for (const LayerSpec& l : spec.layers) {
        const bool first = &l == &spec.layers[0], needs_input = !first || spec.table_trained;
        chain.layers.push_back({l.n_in, padded(l.n_in, lanes), l.n_out, padded(l.n_out, lanes), l.bias,
                                l.function, l.param, n_padded_, needs_input ? n_transposed_ : -1});
        n_padded_ += int64_t(l.n_in + l.bias) * padded(l.n_out, lanes);
        if (needs_input) n_transposed_ += int64_t(l.n_out) * padded(l.n_in, lanes);
        n_weights_ += int64_t(l.n_in) * l.n_out;
        n_parameters_ += 1 + l.bias;
    }
    n_parameters_ += !trunk;
}

// Memory for batches of so many rows.
void Trainer::make_buffers(int64_t rows) {
    if (rows <= buffer_rows_) return;
    views_.clear();
    for (Chain& chain : chains_) {
        const bool trunk = &chain == &chains_.back();
        const int64_t most = trunk ? rows : std::min<int64_t>(rows, chain.table.rows);
        chain.values.clear();
        chain.slopes.clear();
        chain.strides.assign(1, stride(padded(chain.layers[0].n_in, kernels_.lanes)));
        chain.memory.clear();
        const auto buffer = [&](int step) {
            chain.memory.push_back(zeros(most * step));
            return chain.memory.back().get();
        };
        chain.values.push_back(trunk ? nullptr : buffer(chain.strides[0]));
        for (const TrainLayer& l : chain.layers) {
            chain.strides.push_back(stride(l.n_out_padded));
            chain.values.push_back(buffer(chain.strides.back()));
            chain.slopes.push_back(buffer(chain.strides.back()));
        }
        chain.input_gradient = chain.table.trained ? buffer(chain.strides[0]) : nullptr;
        views_.push_back({chain.layers.data(), int(chain.layers.size()), chain.values.data(),
                          chain.slopes.data(), chain.strides.data(), chain.input_gradient, chain.table});
    }
    row_loss_ = zeros(rows);
    buffer_rows_ = rows;
}

TrainView Trainer::view() const {
    const float l2 = options_.decoupled ? 0.0f : float(options_.weight_decay);
    return {views_.data(),
            int(views_.size()) - 1,
            weights_.get(),
            gradient_.get(),
            moment1_.get(),
            moment2_.get(),
            average_.get(),
            transposed_.get(),
            row_loss_.get(),
            steps_.data(),
            {l2, bool(average_), options_.weight_decay == 0.0, peak_rate_}};
}

// Appends the coefficients of the call's steps.
void Trainer::plan_steps(const TrainCall& call) {
    double log_decays = 0.0;
    if (!steps_.empty()) {
        log_decays = steps_.back().log_decays;
        steps_.pop_back();
    }
    for (int64_t s = 0; s <= call.steps(); ++s) {
        const double k = double(steps_done_ + s + 1), lr = s < call.steps() ? call.rates[s] : 0.0;
        // Early on a short memory, so that the random initial weights are soon forgotten.
        const double decay = std::min(options_.average, (1.0 + k) / (10.0 + k));
        steps_.push_back({float(lr / (1.0 - std::pow(kBeta1, k))),
                          float(1.0 / std::sqrt(1.0 - std::pow(kBeta2, k))),
                          float(options_.decoupled ? 1.0 - lr * options_.weight_decay : 1.0),
                          float(1.0 - decay), log_decays});
        peak_rate_ = std::max(peak_rate_, steps_.back().rate);
        log_decays += std::log(decay);
    }
}

// Every row of every table is brought to the last step.
void Trainer::settle_tables() {
    if (steps_.empty()) return;
    const FloatingPointState state(true);
    const TrainView v = view();
    for (size_t c = 0; c + 1 < chains_.size(); ++c) {
        if (chains_[c].table.trained)
            kernels_.train.settle(v, int(c), 0, chains_[c].table.rows, int64_t(steps_.size()) - 1);
        std::fill(chains_[c].settled.begin(), chains_[c].settled.end(), 0);
    }
    steps_.clear();
    peak_rate_ = 0.0f;
}

// use(number of the parameter, element of it, where it lies in weights_, table) for every element
template <class Use>
void Trainer::over_parameters(Use use) const {
    size_t number = 0;
    for (const Chain& chain : chains_) {
        for (const TrainLayer& l : chain.layers) {
            const Panels place{l.n_in, l.bias, l.n_out_padded, kernels_.train.panel, kernels_.lanes};
            for (int j = 0; j < l.n_out; ++j)
                for (int k = 0; k < l.n_in; ++k)
                    use(number, int64_t(j) * l.n_in + k, l.weights + place.at(k, j), nullptr);
            ++number;
            if (!l.bias) continue;
            for (int j = 0; j < l.n_out; ++j) use(number, j, l.weights + place.at(-1, j), nullptr);
            ++number;
        }
        if (&chain == &chains_.back()) continue;
        for (int64_t row = 0; row < chain.table.rows; ++row)
            for (int k = 0; k < chain.table.width; ++k)
                use(number, row * chain.table.width + k, chain.table.offset + row * chain.table.stride + k,
                    &chain.table);
        ++number;
    }
}

void Trainer::load(const std::vector<const float*>& parameters) {
    require(parameters.size() == n_parameters_, "parameters: not as many as the network has");
    over_parameters([&](size_t number, int64_t i, int64_t at, const TrainTable*) {
        weights_[size_t(at)] = parameters[number][i];
    });
    if (average_ && steps_done_ == 0) std::copy_n(weights_.get(), n_padded_, average_.get());
    refresh_transposed();
}

void Trainer::store(const std::vector<float*>& parameters, bool average) {
    require(parameters.size() == n_parameters_, "parameters: not as many as the network has");
    require(!average || average_, "average: none is kept");
    settle_tables();
    const float* from = average ? average_.get() : weights_.get();
    over_parameters([&](size_t number, int64_t i, int64_t at, const TrainTable* table) {
        if (!table || table->trained) parameters[number][i] = from[at];
    });
}

void Trainer::refresh_transposed() {
    for (const Chain& chain : chains_)
        for (const TrainLayer& l : chain.layers) {
            if (l.transposed < 0) continue;
            const Panels place{l.n_in, l.bias, l.n_out_padded, kernels_.train.panel, kernels_.lanes};
            const Panels copy{l.n_out, 0, l.n_in_padded, kernels_.train.panel, kernels_.lanes};
            for (int j = 0; j < l.n_out; ++j)
                for (int k = 0; k < l.n_in; ++k)
                    transposed_[size_t(l.transposed + copy.at(j, k))] =
                        weights_[size_t(l.weights + place.at(k, j))];
        }
}

}  // namespace df::cpu
