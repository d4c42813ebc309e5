"""The table of bad input for Sampler, Sampler.sample, Sampler.stream and sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from bad_input import INF, META, NAN, SCHEDULE, Bench, Case, Either, Ty, V, Wide, net, overlapping, spoilt
from torch import nn

import diffusion_fast as df


def ones(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
    return torch.ones(shape, **options)


class Matrix(nn.Module):
    """Multiplies by a matrix of any layout."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x @ self.matrix.to_dense()


def scripted() -> nn.Module:
    """A module with a part that has left Python."""
    return nn.Sequential(torch.jit.trace(nn.ReLU(), ones((2, 2)))).eval()


class WithContext(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x + context[:, :2]


def masked(array: np.ndarray) -> np.ndarray:
    """With the first element behind the mask."""
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == 0)


def with_context(b: Bench, context: np.ndarray) -> Any:
    sampler = b.make(WithContext().eval(), shape=2, context_shape=2)
    return b.draw(sampler=sampler, context=context)


def kinks() -> nn.Module:
    """Of which no table of 512 MB makes a millionth."""
    with torch.random.fork_rng():
        return df.models.MLPDenoiser(2, (32, 32), "relu", n_steps=10).eval()


def aliased_x_T(b: Bench) -> Any:
    given, out = overlapping(b)
    return b.draw(x_T=given, out=out)


# fmt: off
SAMPLER_CASES = [
    # Sampler, when it is made
    Case("Sampler model", "not a module", lambda b: b.make("mlp"), Ty, "'mlp'", "nn.Module"),
    Case("Sampler model", "train mode", lambda b: b.make(net().train()), V, "train mode", r"model\.eval\(\)"),
    Case("Sampler model", "float64", lambda b: b.make(net().double()), V, "float64", "float32", "model.*"),
    Case("Sampler model", "float64, torch", lambda b: b.make(net().double(), backend="torch"),
         V, "float64", "float32", "model.*"),
    Case("Sampler model", "NaN weight", lambda b: b.make(spoilt(NAN)),
         V, "nan at", "finite", r"model\.model\.0\.bias"),
    Case("Sampler model", "infinite weight", lambda b: b.make(spoilt(-INF), backend="torch"),
         V, r"-inf at index \(3,\)", "finite", r"model\.model\.0\.bias"),
    Case("Sampler model", "device", lambda b: b.make(net().to(META)), V, "on meta", r"CPU"),
    Case("Sampler model", "not initialised", lambda b: b.make(nn.LazyLinear(2).eval(), shape=2),
         V, "not initialised", "call the lazy module", r"model\.weight"),
    Case("Sampler model", "sparse", lambda b: b.make(Matrix(torch.eye(2).to_sparse()).eval(), shape=2),
         V, "sparse_coo", "dense", r"model\.matrix"),
    Case("Sampler model", "compressed rows, torch",
         lambda b: b.make(Matrix(torch.eye(2).to_sparse_csr()).eval(), shape=2, backend="torch"),
         V, "sparse_csr", "dense", r"model\.matrix"),
    Case("Sampler model", "TorchScript", lambda b: b.make(torch.jit.script(Wide()).eval(), shape=2),
         V, "TorchScript module RecursiveScriptModule", "that torch.jit.script or"),
    Case("Sampler model", "traced", lambda b: b.make(scripted(), shape=2, backend="torch"),
         V, "TorchScript module TopLevelTracedModule", "torch.jit.trace was given"),
    Case("Sampler model", "called with more than it takes",
         lambda b: b.make(nn.LayerNorm(2).eval(), shape=2, backend="native"),
         V, "TypeError", r"module\(x, t\)"),
    Case("Sampler schedule", "type", lambda b: b.make(schedule=[0.1]), Ty, r"\[0\.1\]", "NoiseSchedule"),
    Case("Sampler schedule", "longer than model.n_steps",
         lambda b: b.make(schedule=df.NoiseSchedule.linear(11)), V, "11 steps", "n_steps = 10"),
    Case("Sampler shape", "missing", lambda b: b.make(nn.Identity().eval()), Ty, "None", r"tuple.*\(3,\)"),
    Case("Sampler shape", "type", lambda b: b.make(Wide().eval(), shape="2"), Ty, "'2'", "tuple"),
    Case("Sampler shape", "zero", lambda b: b.make(Wide().eval(), shape=(3, 0)), V, "0", "from 1"),
    Case("Sampler shape", "bool", lambda b: b.make(Wide().eval(), shape=(True,)), Ty, "True", "from 1"),
    Case("Sampler shape", "empty", lambda b: b.make(Wide().eval(), shape=()), Ty, r"\(\)", "tuple"),
    Case("Sampler shape", "not the model's", lambda b: b.make(shape=(5,)), V, r"\(5,\)", r"\(2,\)"),
    Case("Sampler solver", "unknown", lambda b: b.make(solver="dppm"), V, "'dppm'", "ddpm, ddim.*'ddpm'"),
    Case("Sampler solver", "type", lambda b: b.make(solver=3), Ty, "3", "ddpm"),
    Case("Sampler options", "unknown", lambda b: b.make(varaince="beta"),
         V, "'varaince'", "did you mean 'variance'", "options of Sampler"),
    Case("Sampler options", "misspelt, of none of the solvers", lambda b: b.make(guidance_scal=2.0),
         V, "'guidance_scal'", "did you mean 'guidance_scale'", "options of Sampler"),
    Case("Sampler options", "another solver's", lambda b: b.make(eta=1.0),
         V, "'eta'", "steps", "options of solver 'ddpm'"),
    Case("Sampler steps", "more than T", lambda b: b.make(steps=11), V, "11", "1 to 10"),
    Case("Sampler steps", "zero", lambda b: b.make(steps=0), V, "0", "1 to 10"),
    Case("Sampler steps", "bool", lambda b: b.make(steps=True), Ty, "True", "integer"),
    Case("Sampler steps", "string", lambda b: b.make(steps="5"), Ty, "'5'", "integer"),
    Case("Sampler steps", "float", lambda b: b.make(steps=5.0), Ty, "5.0", "integer"),
    Case("Sampler clip", "zero", lambda b: b.make(clip=0), V, "0", "finite number"),
    Case("Sampler clip", "NaN", lambda b: b.make(clip=NAN), V, "nan", "finite number"),
    Case("Sampler clip", "string", lambda b: b.make(clip="1"), Ty, "'1'", "finite number"),
    Case("Sampler prediction_type", "unknown", lambda b: b.make(prediction_type="v"),
         V, "'v'", "did you mean 'v_prediction'"),
    Case("Sampler prediction_type", "epsilon at abar = 0",
         lambda b: b.make(schedule=SCHEDULE.zero_terminal_snr()),
         V, "'epsilon' with alphas_cumprod = 0 at timestep 9", "v_prediction"),
    Case("Sampler guidance_scale", "without classes", lambda b: b.make(guidance_scale=2.0), V, "2.0", "None"),
    Case("Sampler guidance_scale", "classes without a null class, beside a null context",
         lambda b: b.make(net(3), null_class=False, context_shape=2, null_context=0.0, guidance_scale=2.0),
         V, "2.0", "None, for there is no null class"),
    Case("Sampler guidance_weight", "without classes", lambda b: b.make(guidance_weight=2.0),
         V, "2.0", "None"),
    Case("Sampler guidance_weight", "both forms",
         lambda b: b.make(net(3), guidance_scale=2.0, guidance_weight=1.0),
         V, "1.0", "None where guidance_scale"),
    Case("Sampler guidance_scale", "NaN", lambda b: b.make(net(3), guidance_scale=NAN), V, "nan", "finite"),
    Case("Sampler guidance_scale", "string", lambda b: b.make(net(3), guidance_scale="2"),
         Ty, "'2'", "finite"),
    Case("Sampler guidance_scale", "beyond float32", lambda b: b.make(net(3), guidance_scale=1e39),
         V, r"1e\+39", "finite number"),
    Case("Sampler guidance_weight", "infinite", lambda b: b.make(net(3), guidance_weight=INF),
         V, "inf", "finite"),
    Case("Sampler n_classes", "zero", lambda b: b.make(Wide().eval(), shape=2, n_classes=0),
         V, "0", "from 1"),
    Case("Sampler n_classes", "not the model's", lambda b: b.make(net(3), n_classes=4), V, "4", "own 3"),
    Case("Sampler n_classes", "bool", lambda b: b.make(Wide().eval(), shape=2, n_classes=True),
         Ty, "True", "integer"),
    Case("Sampler time_input", "unknown", lambda b: b.make(time_input="indx"),
         V, "'indx'", "did you mean 'index'"),
    Case("Sampler backend", "unknown", lambda b: b.make(backend="cuda"), V, "'cuda'", "auto, native, torch"),
    Case("Sampler precision", "of another device", lambda b: b.make(precision="float16"),
         V, "'float16'", "'float32', 'bfloat16', 'table', 'auto' on the CPU"),
    Case("Sampler precision", "misspelt", lambda b: b.make(precision="tabel"), V, "'tabel'",
         "did you mean 'table'"),
    Case("Sampler precision", "type", lambda b: b.make(precision=32), Ty, "32", "float32, .*table, auto"),
    Case("Sampler precision", "a table for torch", lambda b: b.make(precision="table", backend="torch"),
         V, "'table'", "'float32' with backend"),
    Case("Sampler precision", "a table of three elements",
         lambda b: b.make(Wide().eval(), shape=3, precision="table"), V, "'table'", "has 3 elements"),
    Case("Sampler precision", "a table with a context",
         lambda b: b.make(WithContext().eval(), shape=2, context_shape=4, precision="table"),
         V, "'table'", "has a context"),
    Case("Sampler precision", "a table with guidance rescale",
         lambda b: b.make(net(3), guidance_scale=2.0, guidance_rescale=0.5, precision="table"),
         V, "'table'", "guidance_rescale divides"),
    Case("Sampler tolerance", "zero", lambda b: b.make(precision="table", tolerance=0), V, "0",
         r"\[1e-06, 1\]"),
    Case("Sampler tolerance", "negative", lambda b: b.make(precision="auto", tolerance=-1e-3),
         V, "-0.001", r"\[1e-06, 1\]"),
    Case("Sampler tolerance", "NaN", lambda b: b.make(precision="table", tolerance=NAN), V, "nan", "finite"),
    Case("Sampler tolerance", "string", lambda b: b.make(precision="table", tolerance="1e-3"),
         Ty, "'1e-3'", "finite number"),
    Case("Sampler tolerance", "above one", lambda b: b.make(precision="table", tolerance=2.0),
         V, "2.0", r"\[1e-06, 1\]"),
    Case("Sampler tolerance", "of float32", lambda b: b.make(tolerance=1e-3),
         V, "0.001", "None with precision='float32'"),
    Case("Sampler tolerance", "beyond the memory",
         lambda b: b.make(kinks(), precision="table", tolerance=1e-6),
         V, "1e-06", "a larger one, .* more than 512 MB"),
    Case("Sampler expected_samples", "zero", lambda b: b.make(precision="auto", expected_samples=0),
         V, "0", "from 1"),
    Case("Sampler expected_samples", "float", lambda b: b.make(precision="auto", expected_samples=1e6),
         Ty, "1000000.0", "integer"),
    Case("Sampler expected_samples", "of a table", lambda b: b.make(precision="table", expected_samples=10),
         V, "10", "None with precision='table'"),
    Case("Sampler device", "another", lambda b: b.make(device=META), V, "'meta'", "CPU"),
    Case("Sampler standardiser", "type", lambda b: b.make(standardiser=(0, 1)),
         Ty, r"\(0, 1\)", "Standardiser"),
    Case("Sampler standardiser", "width", lambda b: b.make(standardiser=df.Standardiser([0.0], [1.0])),
         V, "1 col", r"\(2,\)"),
    # Sampler.sample
    Case("sample n", "negative", lambda b: b.draw(-1), V, "-1", "from 0"),
    Case("sample n", "bool", lambda b: b.draw(True), Ty, "True", "integer"),
    Case("sample n", "float", lambda b: b.draw(4.0), Ty, "4.0", "integer"),
    Case("sample n", "string", lambda b: b.draw("4"), Ty, "'4'", "integer"),
    Case("sample n", "above 2^48", lambda b: b.draw(2**48 + 1), V, "281474976710657", "to 281474976710656"),
    Case("sample n", "size overflows", lambda b: b.make(Wide().eval(), shape=1 << 20).sample(2**48),
         V, "281474976710656", r"2\^62"),
    Case("sample start", "start + n above 2^48", lambda b: b.draw(start=2**48 - 3),
         V, "281474976710653", r"2\^48"),
    Case("sample start", "negative", lambda b: b.draw(start=-1), V, "-1", "from 0"),
    Case("sample seed", "negative", lambda b: b.draw(seed=-1), V, "-1", "from 0"),
    Case("sample seed", "2^64", lambda b: b.draw(seed=2**64), V, str(2**64), str(2**64 - 1)),
    Case("sample seed", "float", lambda b: b.draw(seed=0.5), Ty, "0.5", "integer"),
    Case("sample seed", "None", lambda b: b.draw(seed=None), Ty, "None", "integer"),
    Case("sample threads", "zero", lambda b: b.draw(threads=0), V, "0", "1 to 4096"),
    Case("sample threads", "bool", lambda b: b.draw(threads=True), Ty, "True", "1 to 4096"),
    Case("sample threads", "string", lambda b: b.draw(threads="2"), Ty, "'2'", "1 to 4096"),
    Case("sample progress", "int", lambda b: b.draw(progress=1), Ty, "1", "True or False"),
    Case("sample return_trajectory", "string", lambda b: b.draw(return_trajectory="yes"),
         Ty, "'yes'", "True or False"),
    Case("sample labels", "without classes", lambda b: b.draw(labels=1), V, "1", "None"),
    Case("sample labels", "too large", lambda b: b.draw(sampler=b.by_class, labels=4), V, "4", "0 to 3"),
    Case("sample labels", "negative", lambda b: b.draw(sampler=b.by_class, labels=-1), V, "-1", "0 to 3"),
    Case("sample labels", "one too large", lambda b: b.draw(sampler=b.by_class, labels=[0, 1, 9, 2]),
         V, "9", "0 to 3"),
    Case("sample labels", "floats", lambda b: b.draw(sampler=b.by_class, labels=torch.zeros(4)),
         Ty, "float32", "integer"),
    Case("sample labels", "bools",
         lambda b: b.draw(sampler=b.by_class, labels=torch.ones(4, dtype=torch.bool)), Ty, "bool", "integer"),
    Case("sample labels", "bool", lambda b: b.draw(sampler=b.by_class, labels=True), Ty, "True", "0 to 3"),
    Case("sample labels", "string", lambda b: b.draw(sampler=b.by_class, labels="cat"),
         Ty, "'cat'", "0 to 3"),
    Case("sample labels", "length", lambda b: b.draw(sampler=b.by_class, labels=[0, 1]),
         V, r"\[0, 1\]", r"\(4,\)"),
    Case("sample labels", "rank",
         lambda b: b.draw(sampler=b.by_class, labels=torch.zeros(4, 1, dtype=torch.int64)),
         V, r"\(4, 1\)", r"\(4,\)"),
    Case("sample labels", "device",
         lambda b: b.draw(sampler=b.by_class, labels=torch.zeros(4, dtype=torch.int64, device=META)),
         V, "on meta", r"\(4,\)"),
    Case("sample labels", "ragged", lambda b: b.draw(sampler=b.by_class, labels=[[0], [1, 2]]),
         Ty, r"\[\[0\], ", "integer"),
    Case("sample labels", "beyond int64", lambda b: b.draw(sampler=b.by_class, labels=[0, 1, 2, 2**70]),
         Either, r"\d{19}", "integer"),
    Case("sample labels", "unsigned and too large",
         lambda b: b.draw(sampler=b.by_class, labels=np.array([0, 1, 2, 2**63], np.uint64)),
         V, str(2**63), "0 to 3"),
    Case("sample labels", "sparse",
         lambda b: b.draw(sampler=b.by_class, labels=torch.ones(4, dtype=torch.int64).to_sparse()),
         Either, "tensor", "integer"),
    Case("sample labels", "none with guidance", lambda b: b.draw(sampler=b.guided), V, "None", "0 to 3"),
    Case("sample labels", "bad, with a generator",
         lambda b: b.draw(sampler=b.by_class, seed=b.generator, labels=9), V, "9", "0 to 3"),
    Case("sample labels", "masked",
         lambda b: b.draw(sampler=b.by_class, labels=masked(np.zeros(4, np.int64))), Ty, "masked", "mask"),
    Case("sample guidance_scale", "masked",
         lambda b: b.draw(sampler=b.guided, labels=1, guidance_scale=masked(np.ones(4, np.float32))),
         Ty, "masked", "mask"),
    Case("sample guidance_weight", "1 in float32",
         lambda b: b.draw(sampler=b.make(net(3), guidance_scale=1 + 1e-9), labels=1,
                          guidance_weight=ones((4,))),
         V, r"shape \(4,\)", "None.*other than 1 in float32"),
    Case("sample guidance_scale", "1 in float32, by weight",
         lambda b: b.draw(sampler=b.make(net(3), guidance_weight=1e-9), labels=1, guidance_scale=ones((4,))),
         V, r"shape \(4,\)", "None.*other than 1 in float32"),
    Case("sample context", "masked", lambda b: with_context(b, masked(np.ones((4, 2), np.float32))),
         Ty, "masked", "mask"),
    Case("sample context", "longdouble", lambda b: with_context(b, np.ones((4, 2), np.longdouble)),
         Ty, "longdouble|float128|float64", "float32 tensor"),
    Case("sample fixed_values", "masked",
         lambda b: b.draw(fixed_mask=np.array([True, False]), fixed_values=masked(np.ones(2, np.float32))),
         Ty, "masked", "mask"),
    Case("sample fixed_mask", "masked",
         lambda b: b.draw(fixed_mask=masked(np.array([True, False])), fixed_values=ones((2,))),
         Ty, "masked", "mask"),
    Case("sample x_T", "masked", lambda b: b.draw(x_T=masked(np.ones((4, 2), np.float32))),
         Ty, "masked", "mask"),
    Case("sample noise", "masked", lambda b: b.draw(noise=masked(np.ones((10, 4, 2), np.float32))),
         Ty, "masked", "mask"),
    Case("sample x_T", "rank", lambda b: b.draw(x_T=ones((8,))), V, r"\(8,\)", r"\(4, 2\)"),
    Case("sample x_T", "dim", lambda b: b.draw(x_T=ones((4, 3))), V, r"\(4, 3\)", r"\(4, 2\)"),
    Case("sample x_T", "dtype", lambda b: b.draw(x_T=ones((4, 2), dtype=torch.float64)),
         V, "float64", "float32"),
    Case("sample x_T", "device", lambda b: b.draw(x_T=ones((4, 2), device=META)), V, "on meta", "CPU"),
    Case("sample x_T", "NaN", lambda b: b.draw(x_T=ones((4, 2)) * NAN),
         V, r"nan at index \(0, 0\)", "finite"),
    Case("sample x_T", "requires grad", lambda b: b.draw(x_T=ones((4, 2), requires_grad=True)),
         V, "requires grad", "detach"),
    Case("sample x_T", "array", lambda b: b.draw(x_T=np.ones((4, 2), np.float32)),
         Ty, "float32 array", "tensor"),
    Case("sample x_T", "sparse", lambda b: b.draw(x_T=ones((4, 2)).to_sparse()),
         V, "tensor", r"\(4, 2\)"),
    Case("sample noise", "shape", lambda b: b.draw(noise=ones((4, 2))), V, r"\(4, 2\)", r"\(10, 4, 2\)"),
    Case("sample noise", "infinite", lambda b: b.draw(noise=ones((10, 4, 2)) / 0), V, "inf at", "finite"),
    Case("sample noise", "dtype", lambda b: b.draw(noise=ones((10, 4, 2), dtype=torch.bfloat16)),
         V, "bfloat16", "float32"),
    Case("sample out", "dim", lambda b: b.draw(out=b.out(4, 3)), V, r"\(4, 3\)", r"\(4, 2\)"),
    Case("sample out", "rank", lambda b: b.draw(out=b.out(8)), V, r"\(8,\)", r"\(4, 2\)"),
    Case("sample out", "without the trajectory", lambda b: b.draw(return_trajectory=True),
         V, r"\(4, 2\)", r"\(11, 4, 2\)"),
    Case("sample out", "dtype", lambda b: b.draw(out=b.out(4, 2, dtype=torch.float16)),
         V, "float16", "float32"),
    Case("sample out", "device", lambda b: b.draw(out=torch.empty(4, 2, device=META)), V, "on meta", "CPU"),
    Case("sample out", "not contiguous", lambda b: b.draw(out=b.out(2, 4).T),
         V, r"strides \(1, 4\)", "contiguous"),
    Case("sample out", "expanded", lambda b: b.draw(out=b.out(1, 2).expand(4, 2)),
         V, r"strides \(0, 1\)", "contiguous"),
    Case("sample out", "requires grad", lambda b: b.draw(out=b.out().requires_grad_()),
         V, "requires grad", r"out\.detach\(\)"),
    Case("sample out", "read-only array", lambda b: b.draw(out=b.array(4, 2, read_only=True)),
         V, "read-only", "writable"),
    Case("sample out", "array not contiguous", lambda b: b.draw(out=b.array(4, 4)[:, ::2]),
         V, r"strides \(16, 8\)", "contiguous"),
    Case("sample out", "array dtype", lambda b: b.draw(out=np.zeros((4, 2))), V, "float64 array", "float32"),
    Case("sample out", "array byte order", lambda b: b.draw(out=np.zeros((4, 2), ">f4")),
         V, ">f4|float32", "float32"),
    Case("sample out", "list", lambda b: b.draw(out=[[0.0] * 2] * 4), Ty, r"\[\[0\.0", "tensor"),
    Case("sample out", "sparse", lambda b: b.draw(out=ones((4, 2)).to_sparse()),
         V, "tensor", r"\(4, 2\)"),
    Case("sample out", "overlaps x_T", aliased_x_T, V, "tensor", "overlaps no"),
    # Sampler.stream and diffusion_fast.sample
    Case("stream n", "negative", lambda b: b.sampler.stream(-1), V, "-1", "from 0"),
    Case("stream chunk_size", "zero", lambda b: b.sampler.stream(4, 0), V, "0", "from 1"),
    Case("stream chunk_size", "float", lambda b: b.sampler.stream(4, 1e3), Ty, "1000.0", "integer"),
    Case("stream chunk_size", "2^62 bytes",
         lambda b: next(b.make(Wide().eval(), shape=1 << 20).stream(2**48, 2**45)),
         V, r"\(35184372088832, 1048576\)", r"2\^62"),
    Case("stream seed", "string", lambda b: b.sampler.stream(4, seed="0"), Ty, "'0'", "integer"),
    Case("stream labels", "length", lambda b: b.by_class.stream(4, labels=[0]), V, r"\[0\]", r"\(4,\)"),
    Case("stream threads", "zero", lambda b: b.sampler.stream(4, threads=0), V, "0", "1 to 4096"),
    Case("stream out", "not accepted", lambda b: b.sampler.stream(4, out=b.out()),
         V, "tensor", "call sample"),
    Case("stream x_T", "not accepted", lambda b: b.sampler.stream(4, x_T=b.out()),
         V, "tensor", "call sample"),
    Case("stream options", "misspelt", lambda b: b.by_class.stream(4, lables=1),
         V, "'lables'", "chunk_size, seed, .*, threads .did you mean 'labels'", "options of stream"),
    Case("stream options", "of another name", lambda b: b.sampler.stream(4, chunk=2),
         V, "'chunk'", "did you mean 'chunk_size'", "options of stream"),
    Case("df.sample options", "misspelt, of the call", lambda b: df.sample(b.model, SCHEDULE, 4, lables=1),
         V, "'lables'", "did you mean 'labels'", "options of sample"),
    Case("df.sample options", "misspelt, of the sampler", lambda b: df.sample(b.model, SCHEDULE, 4, solvr=1),
         V, "'solvr'", "did you mean 'solver'", "options of sample"),
    Case("df.sample options", "of another solver", lambda b: df.sample(b.model, SCHEDULE, 4, eta=1.0),
         V, "'eta'", "variance", "options of solver 'ddpm'"),
    Case("df.sample n", "negative", lambda b: df.sample(b.model, SCHEDULE, -1), V, "-1", "from 0"),
    Case("df.sample out", "dim", lambda b: df.sample(b.model, SCHEDULE, 4, out=b.out(3, 2)),
         V, r"\(3, 2\)", r"\(4, 2\)"),
    Case("df.sample options", "unknown", lambda b: df.sample(b.model, SCHEDULE, 4, stpes=2),
         V, "'stpes'", "did you mean 'steps'", "options.*"),
]
# fmt: on
