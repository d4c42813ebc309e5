// The noise stream on a device, (n, dim) float32.
#include "api.h"
#include "elements.cuh"

namespace df::cuda {

namespace {

struct NoiseParams {
    NoiseArgs args;
    RoundKeys keys;  // of args.seed
    Draw draw;
    Replay replay;
    Cut cut;
};

template <class Access>
__device__ __forceinline__ void write_normals(const NoiseParams& p, const Access& to) {
    float z[Access::kCount] = {};
    Draw draw = p.draw;
    if (p.replay.step) draw.move_to(*p.replay.step);
    if (p.replay.seed)
        draw.normals(RoundKeys(*p.replay.seed), to.at, z);
    else
        draw.normals(p.keys, to.at, z);
    to.store(p.args.out, Access::pack(z));
}

__global__ void __launch_bounds__(kThreads) noise_kernel(const __grid_constant__ NoiseParams p) {
    using E = Format<Dtype::kFloat32>;
    const uint64_t item = item_index();
    if (item < p.cut.packs)
        write_normals(p, PackAccess<E>{pack_at<E::kPack>(item, p.cut.quads, p.args.dim)});
    else if (item < p.cut.items)
        write_normals(p,
                      QuadAccess<E>{quad_at(item - p.cut.packs + p.cut.first_quad, p.cut.quads, p.args.dim)});
}

}  // namespace

void run_noise(const NoiseArgs& a, const Replay& replay, const Target& target) {
    if (a.n == 0) return;
    const DeviceGuard guard(target.device);
    const bool packs = reinterpret_cast<uintptr_t>(a.out) % 16 == 0 && (a.dim % 4 == 0 || a.dim <= 2);
    const NoiseParams p{a, RoundKeys(a.seed), Draw(a.start, a.dim, a.step, a.purpose, a.substream), replay,
                        Cut(a.n, a.dim, Format<Dtype::kFloat32>::kPack, packs)};
    launch(noise_kernel, p.cut.grid(), dim3(kThreads), 0, target.stream, p);
}

void load_noise() { load(noise_kernel); }

}  // namespace df::cuda
