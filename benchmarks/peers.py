"""What others would write for the same job: torch.compile, JAX, ONNX Runtime and diffusers.

The two chains in plain torch are in diffusion_fast/_torch_peers.py. Each chain peer is made once (weights
packed, functions compiled) and then called with a number of samples. All but diffusers' loop run the network
with the time embedding folded into a table; tests/test_benchmarks.py compares each with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast._torch_peers import (
    CHUNKS,
    INPLACE_ACTIVATIONS,
    ChainPeer,
    Coefficients,
    Folded,
    TorchEager,
    TorchFolded,
    linear_betas,
)
from diffusion_fast.models import MLPDenoiser


class FoldedStep(nn.Module):
    """One step of the folded chain as a torch module, for compilers."""

    def __init__(self, folded: Folded) -> None:
        super().__init__()
        biases: list[Tensor | None] = [None, *folded.biases]
        self.layers = nn.ModuleList()
        for weight, bias in zip(folded.weights, biases, strict=True):
            n_in, n_out = weight.shape
            layer = nn.Linear(n_in, n_out, bias=bias is not None)
            layer.load_state_dict({"weight": weight.t()} | ({} if bias is None else {"bias": bias}))
            self.layers.append(layer)
        self.act = INPLACE_ACTIVATIONS[folded.activation]

    def forward(self, x: Tensor, row: Tensor, aes: Tensor, z: Tensor) -> Tensor:
        h = self.act(self.layers[0](x) + row)
        for layer in self.layers[1:-1]:
            h = self.act(layer(h))
        return aes[0] * x + aes[1] * self.layers[-1](h) + aes[2] * z


class TorchCompile:
    """torch.compile of one folded step; the noise is torch's own, which was faster than inside the graph."""

    name = "torch.compile"
    chunks: Sequence[int] = (2048, 8192)  # each is compiled for itself, five seconds and more
    options: dict[str, Any] = {}

    def __init__(self, model: MLPDenoiser) -> None:
        import torch._dynamo
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ImportError("torch.compile finds no C++ compiler") from error
        folded, steps = Folded.of(model), Coefficients.ddpm(model.n_steps)
        self.aes = torch.from_numpy(np.stack([steps.a, steps.e, steps.s], axis=1)).float()
        self.table, self.dim = folded.table, model.dim
        module = FoldedStep(folded).eval().requires_grad_(False)
        # Every model and size counts as a recompilation of the same code, and past the limit it would run
        # uncompiled without a word; fullgraph makes that an error.
        torch._dynamo.config.recompile_limit = 256
        # A program for each size: with dynamic=True products of few samples take a slower path.
        self.step = torch.compile(module, dynamic=False, fullgraph=True, options=self.options)

    @torch.no_grad()
    def eps(self, x: Tensor, t: int) -> Tensor:
        return self.step(x, self.table[t], torch.tensor([0.0, 1.0, 0.0]), torch.zeros_like(x))

    @torch.no_grad()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        x, z = torch.randn(n, self.dim), torch.empty(n, self.dim)
        for t in reversed(range(len(self.table) if n_steps is None else n_steps)):
            x = self.step(x, self.table[t], self.aes[t], z.normal_() if t else z)
        return x


class TorchCompileMax(TorchCompile):
    """With every kernel tried out and the weights as constants of the program."""

    name = "torch.compile max"
    chunks = (2048,)  # half a minute of compiling
    options = {"max_autotune": True, "freezing": True, "autotune_num_choices_displayed": 0}


class JaxScan:
    """One jitted lax.scan over the steps with the table folded in; its key is split once for each step."""

    name = "jax scan"
    chunks: Sequence[int] = CHUNKS

    def __init__(self, model: MLPDenoiser) -> None:
        import jax
        import jax.numpy as jnp

        folded, steps = Folded.of(model), Coefficients.ddpm(model.n_steps)
        weights = [jnp.asarray(w.numpy()) for w in folded.weights]
        biases = [jnp.asarray(b.numpy()) for b in folded.biases]
        act = {"relu": jax.nn.relu, "tanh": jnp.tanh}[folded.activation]
        columns = [c.astype(np.float32) for c in (steps.a, steps.e, steps.s)] + [folded.table.numpy()]

        def network(x: Any, row: Any) -> Any:
            h = act(x @ weights[0] + row)
            for weight, b in zip(weights[1:-1], biases[:-1], strict=True):
                h = act(h @ weight + b)
            return h @ weights[-1] + biases[-1]

        def chain(key: Any, rows: Any, n: int) -> Any:
            key, first = jax.random.split(key)

            def step(carry: Any, row: Any) -> Any:
                x, key = carry
                a, e, s, bias = row
                key, fresh = jax.random.split(key)
                return (a * x + e * network(x, bias) + s * jax.random.normal(fresh, x.shape), key), None

            return jax.lax.scan(step, (jax.random.normal(first, (n, model.dim)), key), rows)[0][0]

        self.key = jax.random.key(0)
        self.rows = tuple(jnp.asarray(column[::-1].copy()) for column in columns)
        self.network = jax.jit(network)
        self.compiled = jax.jit(chain, static_argnums=2)

    def eps(self, x: Tensor, t: int) -> Tensor:
        return torch.from_numpy(np.array(self.network(x.numpy(), self.rows[-1][-1 - t])))

    def chunk(self, n: int, n_steps: int | None = None) -> Any:
        rows = self.rows if n_steps is None else tuple(column[-n_steps:] for column in self.rows)
        return self.compiled(self.key, rows, n).block_until_ready()


class OnnxRuntime:
    """A session for one folded step, rows of tables chosen by t, on buffers bound once for each size.

    The noise is drawn by torch into its buffer; ONNX Runtime's own RandomNormal is not vectorised.
    """

    name = "onnx runtime"
    chunks: Sequence[int] = CHUNKS

    def __init__(self, model: MLPDenoiser) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait by spinning would disturb torch's noise and whatever is measured next. Within the
        # noise of a measurement it makes this peer no slower (64 to 8192 samples of two nets).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        program = onnx_step(Folded.of(model), Coefficients.ddpm(model.n_steps))
        self.session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
        self.dim, self.n_steps = model.dim, model.n_steps
        self.t = np.zeros(1, dtype=np.int64)
        self.x: list[Tensor] = []

    def _bind(self, n: int) -> None:
        self.x, self.z = [torch.empty(n, self.dim) for _ in range(2)], torch.empty(n, self.dim)
        self.bindings = []
        for source, target in (self.x, self.x[::-1]):
            binding = self.session.io_binding()
            for name, buffer in (("x", source), ("z", self.z)):
                binding.bind_input(name, "cpu", 0, np.float32, [n, self.dim], buffer.data_ptr())
            binding.bind_input("t", "cpu", 0, np.int64, [1], self.t.ctypes.data)
            binding.bind_output("next", "cpu", 0, np.float32, [n, self.dim], target.data_ptr())
            self.bindings.append(binding)

    def eps(self, x: Tensor, t: int) -> Tensor:
        inputs = {"x": x.numpy(), "z": np.zeros_like(x.numpy()), "t": np.array([t])}
        return torch.from_numpy(self.session.run(["eps"], inputs)[0])

    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        if not self.x or len(self.x[0]) != n:
            self._bind(n)
        steps = self.n_steps if n_steps is None else n_steps
        self.x[0].normal_()
        for i, t in enumerate(reversed(range(steps))):
            self.t[0] = t
            self.z.normal_()
            self.session.run_with_iobinding(self.bindings[i % 2])
        return self.x[steps % 2]


def onnx_step(folded: Folded, steps: Coefficients) -> bytes:
    """The ONNX program (x, t, z) -> (eps, next), t being the row of the tables: one int64."""
    from onnx import TensorProto, helper, numpy_helper

    tables = {"row": folded.table.numpy(), "a": steps.a, "e": steps.e, "s": steps.s}
    constants = {f"{name}_table": table.astype(np.float32) for name, table in tables.items()}
    nodes = [helper.make_node("Gather", [f"{name}_table", "t"], [name]) for name in tables]
    layers = list(zip(folded.weights, [None, *folded.biases], strict=True))
    h = "x"
    for i, (weight, bias) in enumerate(layers):
        last = i + 1 == len(layers)
        constants[f"weight{i}"] = weight.numpy()
        if bias is not None:
            constants[f"bias{i}"] = bias.numpy()
        output = "eps" if last else f"linear{i}"
        inputs = [h, f"weight{i}", "row" if bias is None else f"bias{i}"]
        nodes.append(helper.make_node("Gemm", inputs, [output]))
        if not last:
            h = f"hidden{i}"
            operator = {"relu": "Relu", "tanh": "Tanh"}[folded.activation]
            nodes.append(helper.make_node(operator, [output], [h]))
    for product, factors in {"ax": ["a", "x"], "ee": ["e", "eps"], "sz": ["s", "z"]}.items():
        nodes.append(helper.make_node("Mul", factors, [product]))
    nodes.append(helper.make_node("Sum", ["ax", "ee", "sz"], ["next"]))

    def points(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", folded.weights[-1].shape[1]])

    graph = helper.make_graph(
        nodes,
        "step",
        [points("x"), helper.make_tensor_value_info("t", TensorProto.INT64, [1]), points("z")],
        [points("eps"), points("next")],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    # An older version of the format, which every ONNX Runtime of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


class DiffusersLoop:
    """The loop of diffusers' DDPMPipeline: the model and DDPMScheduler.step, one timestep after another."""

    name = "diffusers"
    chunks: Sequence[int] = (1024, 4096, 16384)

    def __init__(self, model: MLPDenoiser) -> None:
        self.model = model.eval()
        self.scheduler = ddpm_scheduler(model.n_steps)

    @torch.inference_mode()
    def eps(self, x: Tensor, t: int) -> Tensor:
        return self.model(x, torch.full((len(x),), t, dtype=torch.long))

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        x = torch.randn(n, self.model.dim)
        for t in self.scheduler.timesteps[-(n_steps or self.model.n_steps) :]:
            x = self.scheduler.step(self.model(x, t.expand(n)), t, x).prev_sample
        return x


CHAIN_PEERS: dict[str, Callable[[MLPDenoiser], ChainPeer]] = {
    peer.name: peer
    for peer in (TorchEager, TorchFolded, TorchCompile, TorchCompileMax, JaxScan, OnnxRuntime, DiffusersLoop)
}


def ddpm_scheduler(n_steps: int) -> Any:
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(
        n_steps, trained_betas=linear_betas(n_steps), clip_sample=False, variance_type="fixed_small"
    )
    scheduler.set_timesteps(n_steps)
    return scheduler


def inplace_step(x: Tensor, eps: Tensor, noise: Tensor, a: float, e: float, s: float) -> None:
    """x <- a x + e eps + s z with three in-place operations and a buffer that is filled anew."""
    x.mul_(a).add_(eps, alpha=e).add_(noise.normal_(), alpha=s)


class DiffusersStep:
    """diffusers' DDPMScheduler.step at one timestep of a linear schedule."""

    name = "diffusers"

    def __init__(self, n_steps: int, t: int) -> None:
        self.scheduler = ddpm_scheduler(n_steps)
        self.t = t

    def __call__(self, x: Tensor, eps: Tensor) -> None:
        self.scheduler.step(eps, self.t, x)
