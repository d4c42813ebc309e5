// The whole chain for any plan, in float32, with the bits of the CPU: a block owns a tile of samples, whose
// values lie feature-major in shared memory, or in global scratch where they do not fit; its threads share
// the features of each operation.
//
// Lanes are samples, V of them a thread, so every access to a value is one of consecutive words, and weights
// are read by a whole warp at one address. A linear output is one fma chain of one thread (plan.h), a sum
// over features is taken by one thread; so a sample's result depends on nothing but its index.
#pragma once
#include "chain_args.h"
#include "device.h"
#include "row.cuh"
// after row.cuh, which brings the vectors of one lane
#include "../cpu/statistics.h"

namespace df::cuda {

// y[i] = f(x[i]) for i = 0, stride, ... below count; y may be x. Kept apart: each function is there once.
static __device__ __attribute__((noinline)) void apply_strided(Function function, float param, const float* x,
                                                               float* y, int count, int stride) {
    with_function(function, param, [=](auto f) {
        for (int i = 0; i < count; i += stride) store(y + i, f(load(x + i)));
    });
}

template <int V>
struct Tile {
    static constexpr int S = 32 * V;
    const ChainArgs& a;
    const ProgramView& p;
    const RoundKeys& keys;
    float* const memory;
    const int64_t first;  // sample of lane 0, relative to start
    const int count;      // samples; lanes beyond compute what nobody reads

    __device__ float* at(int feature) const { return memory + feature * S; }
    __device__ const float* floats(int64_t offset) const {
        return offset == kAbsent ? nullptr : reinterpret_cast<const float*>(a.image + offset);
    }
    __device__ int64_t sample(int s) const { return first + (s < count ? s : count - 1); }

    // f(j, s) for every feature j < n and lane s, shared among the threads
    template <class Each>
    __device__ void each(int n, Each f) const {
        for (int i = int(threadIdx.x); i < n * S; i += int(blockDim.x)) f(i / S, i % S);
    }

    // f(x, n, s) with a group of all features of one sample
    template <class Each>
    __device__ void each_sample(Each f) const {
        for (int s = int(threadIdx.x); s < S; s += int(blockDim.x)) f(LaneGroup{p.dim, S}, s);
    }

    // f(q, s, z): the normals of every quad of the state
    template <class Each>
    __device__ void each_normal(uint32_t word, Each f) const {
        each((p.dim + 3) / 4, [&](int q, int s) {
            const uint64_t index = a.start + uint64_t(first + s);
            float z[4];
            normal4<ScalarLanes>(keys, uint32_t(q), word, uint32_t(index), uint32_t(index >> 32), z);
            f(q, s, z);
        });
    }

    // The tile's rows of an (n, width) array, or the one row for all where the stride is 0.
    __device__ void read(const float* rows, int64_t stride, int width, float* x) const {
        each(width, [&](int j, int s) { x[j * S + s] = rows[sample(s) * stride + j]; });
    }

    __device__ void write(float* rows) const {
        const float* x = at(p.x);
        for (int i = int(threadIdx.x); i < count * p.dim; i += int(blockDim.x))
            rows[first * p.dim + i] = x[i % p.dim * S + i / p.dim];
        __syncthreads();  // before x changes
    }

    // A label that is out of range reads class 0 and makes its sample NaN (begin).
    __device__ bool known(int32_t label) const { return uint32_t(label) < uint32_t(p.n_classes); }
    __device__ int32_t label(int branch, int s) const {
        if (branch) return p.n_classes - 1;
        const int32_t l = a.labels ? a.labels[sample(s)] : a.label;
        return known(l) ? l : 0;
    }

    // ---- operations

    // bias + step table, what of the start value of output j is the same for all samples
    __device__ float uniform_start(const ImageOp& op, uint32_t table, int j) const {
        float value = op.bias == kAbsent ? 0.0f : floats(op.bias)[j];
        if (op.step_table != kAbsent) value += floats(op.step_table)[int64_t(table) * op.n_out + j];
        return value;
    }

    __device__ float start(const ImageOp& op, int branch, uint32_t table, int j, int s) const {
        float value = uniform_start(op, table, j);
        if (op.class_table != kAbsent)
            value += floats(op.class_table)[int64_t(label(branch, s)) * op.n_out + j];
        if (op.extra[branch] >= 0) value += at(op.extra[branch])[j * S + s];
        return value;
    }

    // Outputs [j, j + kOutputs) of V samples
    __device__ void linear_block(const ImageOp& op, int branch, uint32_t table, int j) const {
        const int lane = int(threadIdx.x) % 32;
        const float* x = at(op.src[branch]) + lane;
        const auto* w = reinterpret_cast<const float4*>(floats(op.weight) + int64_t(j) * op.n_in);
        float sum[kOutputs][V];
        for (int from = 0; from < op.n_in; from += kChain) {
            const int to = op.n_in - from > kChain ? from + kChain : op.n_in;
            float acc[kOutputs][V];
#pragma unroll
            for (int r = 0; r < kOutputs; ++r)
#pragma unroll
                for (int v = 0; v < V; ++v)
                    acc[r][v] =
                        from || j + r >= op.n_out ? 0.0f : start(op, branch, table, j + r, lane + 32 * v);
            for (int k = from; k < to; ++k, w += kOutputs / 4) {
                const float4 low = w[0], high = w[1];
                const float weights[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    const float xk = x[k * S + 32 * v];
#pragma unroll
                    for (int r = 0; r < kOutputs; ++r) acc[r][v] = __fmaf_rn(weights[r], xk, acc[r][v]);
                }
            }
#pragma unroll
            for (int r = 0; r < kOutputs; ++r)
#pragma unroll
                for (int v = 0; v < V; ++v) sum[r][v] = from ? sum[r][v] + acc[r][v] : acc[r][v];
        }
        float* y = at(op.dst[branch] + j) + lane;
#pragma unroll
        for (int r = 0; r < kOutputs; ++r)
#pragma unroll
            for (int v = 0; v < V; ++v)
                if (j + r < op.n_out) y[r * S + 32 * v] = sum[r][v];
        if (Function(op.function) == Function::kIdentity) return;
        const int outputs = op.n_out - j < kOutputs ? op.n_out - j : kOutputs;
        apply_strided(Function(op.function), op.param, y, y, outputs * S, 32);
    }

    __device__ void linear(const ImageOp& op, int branch, uint32_t table) const {
        const int warps = int(blockDim.x) / 32;
        for (int j = int(threadIdx.x) / 32 * kOutputs; j < op.n_out; j += warps * kOutputs)
            linear_block(op, branch, table, j);
    }

    __device__ void table_op(const ImageOp& op, int branch, uint32_t table) const {
        float* y = at(op.dst[branch]);
        const bool joint = TableFunction(op.function) == TableFunction::kJoint;
        each(op.n_out, [&](int j, int s) {
            const int64_t row = int64_t(table) * p.n_classes + label(branch, s);
            y[j * S + s] =
                joint ? floats(op.class_table)[row * op.n_out + j] : start(op, branch, table, j, s);
        });
    }

    // f(group, first feature, lane) for every group of op.n_in / op.groups neighbouring features
    template <class Each>
    __device__ void each_group(const ImageOp& op, Each f) const {
        const int size = op.n_in / op.groups;
        each(op.groups, [&](int g, int s) { f(LaneGroup{size, S}, g, g * size, s); });
    }

    __device__ void run_op(const ImageOp& op, int branch, uint32_t table) const {
        const float* x = at(op.src[branch]);
        float* y = at(op.dst[branch]);
        switch (op.kind) {
            case OpKind::kLinear:
                return linear(op, branch, table);
            case OpKind::kTable:
                return table_op(op, branch, table);
            case OpKind::kMap: {
                const int from = int(threadIdx.x), count = op.n_in * S - from, threads = int(blockDim.x);
                const auto function = Function(op.function);
                apply_strided(function, op.param, x + from, y + from, count, threads);
                if (!op.groups) return;
                return apply_strided(slope_of(function), op.param, x + from, y + op.n_in * S + from, count,
                                     threads);
            }
            case OpKind::kBinary: {
                const float* x2 = at(op.extra[branch]);
                return with_binary(BinaryFunction(op.function), [&](auto f) {
                    each(op.n_out, [&](int j, int s) {
                        store(y + j * S + s, f(load(x + j * S + s), load(x2 + j * S + s)));
                    });
                });
            }
            case OpKind::kNorm:
                return each_group(op, [&](LaneGroup g, int, int j, int s) {
                    const float *weight = floats(op.weight), *bias = floats(op.bias);
                    normalise(NormFunction(op.function), op.param, g, x + j * S + s, y + j * S + s,
                              weight ? weight + j : nullptr, bias ? bias + j : nullptr);
                });
            case OpKind::kReduce:
                return each_group(op, [&](LaneGroup g, int group, int j, int s) {
                    store(y + group * S + s, reduce(ReduceFunction(op.function), g, x + j * S + s));
                });
            case OpKind::kGather:
                return each(op.n_in,
                            [&](int j, int s) { y[j * S + s] = x[int(a.image[op.weight + j]) * S + s]; });
        }
    }

    // Ops [from, to) for one branch, or for both; what does not differ between them is computed once.
    __device__ __attribute__((noinline)) void network(int from, int to, uint32_t table, int branches) const {
        const auto* ops = reinterpret_cast<const ImageOp*>(a.image + p.ops);
        for (int i = from; i < to; ++i) {
            for (int b = 0; b < (ops[i].differs ? branches : 1); ++b) run_op(ops[i], b, table);
            __syncthreads();
        }
    }

    // ---- the algorithm box, as in cpu/chain.h

    __device__ void begin() const {
        float* x = at(p.x);
        if (a.x_T)
            read(a.x_T, p.dim, p.dim, x);
        else
            each_normal(uint32_t(kPurposeInitial) << 28, [&](int q, int s, const float z[4]) {
                for (int i = 0; i < 4 && 4 * q + i < p.dim; ++i) x[(4 * q + i) * S + s] = z[i];
            });
        if (p.history >= 0) each(3 * p.dim, [&](int j, int s) { at(p.history)[j * S + s] = 0.0f; });
        if (p.n_context) read(a.context, a.context_stride, p.n_context, at(p.context[0]));
        if (p.null_context != kAbsent) read(floats(p.null_context), 0, p.n_context, at(p.context[1]));
        __syncthreads();
        if (a.labels)
            each(p.dim, [&](int j, int s) {
                if (!known(a.labels[sample(s)])) x[j * S + s] = ScalarLanes::as_float(0x7fc00000u);
            });
        network(0, p.n_prologue, 0, p.branches);
        __syncthreads();
    }

    // Fixed coordinates take their value, at the noise level of row i, which is about to evaluate x.
    __device__ void fix(int i, float signal, float noise) const {
        float* x = at(p.x);
        const auto set = [&](int q, int s, const float z[4]) {
            for (int c = 0; c < 4; ++c) {
                const int j = 4 * q + c;
                if (j >= p.dim || !a.fixed_mask[j]) continue;
                const float known = a.fixed[sample(s) * a.fixed_stride + j];
                x[j * S + s] = __fmaf_rn(noise, z[c], signal * known);
            }
        };
        const float none[4] = {};
        if (noise != 0.0f)
            each_normal(uint32_t(i) | uint32_t(kPurposeForward) << 28, set);
        else
            each((p.dim + 3) / 4, [&](int q, int s) { set(q, s, none); });
        __syncthreads();
    }

    __device__ float guidance(const StepRow& row, int s) const {
        return a.guidance ? a.guidance[sample(s)] : row.guidance;
    }

    // F(u), or null: with guidance F = F_u + s (F_c - F_u), then rescaled.
    __device__ const float* evaluate(const StepRow& row) const {
        if (!(row.flags & kEval)) return nullptr;
        const bool guided = p.branches == 2 && row.guidance != 1.0f;
        network(p.n_prologue, p.n_ops, row.table, guided ? 2 : 1);
        const float* c = at(p.output[0]);
        float* F = at(p.output[1]);  // F_u, or F_c itself where the branches do not differ
        if (!guided || F == c) return c;
        each(p.dim, [&](int j, int s) {
            const int i = j * S + s;
            F[i] = __fmaf_rn(guidance(row, s), c[i] - F[i], F[i]);
        });
        __syncthreads();
        if (row.rescale != 0.0f) {
            each_sample([&](LaneGroup g, int s) {
                const vf factor = rescale_factor(g, row.rescale, c + s, F + s);
                for (int j = 0; j < p.dim; ++j) F[j * S + s] *= factor.v;
            });
            __syncthreads();
        }
        return F;
    }

    // m of a row with a dynamic threshold q: clamp(p_x x + p_F F, -q, q) / q
    __device__ void threshold(const StepRow& row, const float* F) const {
        float *x = at(p.x), *m = at(p.m);
        each(p.dim, [&](int j, int s) {
            const int i = j * S + s;
            m[i] = prediction(row, p.terms, x[i], F ? F[i] : 0.0f);
        });
        __syncthreads();
        each_sample([&](LaneGroup g, int s) {
            const vf q = dynamic_threshold(g, row.quantile, row.clip, m + s);
            for (int j = 0; j < p.dim; ++j) store(m + j * S + s, thresholded(load(m + j * S + s), q));
        });
        __syncthreads();
    }

    __device__ void update_state(const StepRow& row, int i, int component, const float* F) const {
        float *x = at(p.x), *h = p.history >= 0 ? at(p.history) : nullptr;
        const float *m = row.quantile != 0.0f ? at(p.m) : nullptr,
                    *z = row.s != 0.0f && !a.noise ? at(p.z + component) : nullptr;
        const float* given = row.s != 0.0f && a.noise ? a.noise + int64_t(i) * a.n * p.dim : nullptr;
        each(p.dim, [&](int j, int s) {
            const int k = j * S + s, stride = p.dim * S;
            Element e{x[k], {}};
            for (int c = 0; h && c < 3; ++c) e.h[c] = h[k + c * stride];
            const float noise = z ? z[k] : given ? given[sample(s) * p.dim + j] : 0.0f;
            update(row, p.terms, e, F ? F[k] : 0.0f, m ? m[k] : 0.0f, noise);
            x[k] = e.x;
            for (int c = 0; (row.flags & kPush) && c < 3; ++c) h[k + c * stride] = e.h[c];
        });
        __syncthreads();
    }

    __device__ void run() const {
        const auto* rows = reinterpret_cast<const StepRow*>(a.image + p.rows);
        begin();
        if (a.trajectory) write(a.trajectory);
        uint32_t drawn = ~0u;
        for (int i = 0; i < p.n_rows; ++i) {
            const StepRow row = rows[i];
            if (a.fixed_mask && (row.flags & kEval))
                fix(i, a.fixed_clean ? 1.0f : row.signal, a.fixed_clean ? 0.0f : row.noise);
            uint32_t component = 0;
            if (row.s != 0.0f && !a.noise) {  // fma(0, z, x) is x: rows with s = 0 draw nothing
                const uint32_t word = step_word(uint32_t(i), kPurposeStep, uint32_t(p.dim), component);
                if (word != drawn)
                    each_normal(word, [&](int q, int s, const float z[4]) {
                        for (int c = 0; c < 4; ++c) at(p.z + 4 * q + c)[s] = z[c];
                    });
                drawn = word;
            }
            if (p.terms & kTermCin)
                each(p.dim, [&](int j, int s) { at(p.u + j)[s] = row.c_in * at(p.x + j)[s]; });
            __syncthreads();
            const float* F = evaluate(row);
            if (row.quantile != 0.0f) threshold(row, F);
            update_state(row, i, int(component), F);
            if (a.fixed_mask && i + 1 == p.n_rows) fix(i, 1.0f, 0.0f);
            if (a.trajectory) write(a.trajectory + int64_t(i + 1) * a.n * p.dim);
        }
        write(a.out);
    }
};

template <int V>
__global__ void __launch_bounds__(kGeneralThreads) general_chain(const __grid_constant__ ChainArgs a) {
    constexpr int S = Tile<V>::S;
    unsigned char* shared = shared_memory();
    auto* keys = reinterpret_cast<RoundKeys*>(shared);
    float* memory = a.scratch ? a.scratch + int64_t(blockIdx.x) * a.program.workspace * S
                              : reinterpret_cast<float*>(shared + kKeyBytes);
    if (threadIdx.x == 0) *keys = a.device_seed ? RoundKeys(*a.device_seed) : a.keys;
    __syncthreads();
    for (int64_t first = int64_t(blockIdx.x) * S; first < a.n; first += int64_t(gridDim.x) * S)
        Tile<V>{a, a.program, *keys, memory, first, int(a.n - first < S ? a.n - first : S)}.run();
}

}  // namespace df::cuda
