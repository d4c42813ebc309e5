"""The C++ trainer against torch's own loop: activations, embeddings, options, threads, instruction sets."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast import _cpu
from diffusion_fast.fused_training import Condition, Core, FusedTrainer, NotFusable, layers_of

ACTIVATIONS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "elu": nn.ELU(0.7),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "softplus": nn.Softplus(),
    "mish": nn.Mish(),
}
STEPS, BATCH = 100, 32


def network(*widths: int, activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(3)
    modules: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        modules += [nn.Linear(n_in, n_out), activation or nn.SiLU()]
    return nn.Sequential(*modules[:-1])


def problem(n_in: int, n_out: int, rows: int = STEPS * BATCH - 5) -> tuple[Tensor, Tensor]:
    """A function to learn, with noise: the last batch is a partial one."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, n_in, generator=generator)
    y = torch.sin(x.sum(1, keepdim=True) * torch.linspace(0.5, 1.5, n_out))
    return x, y + 0.1 * torch.randn(rows, n_out, generator=generator)


def torch_loop(
    net, x, y, *, embeddings=(), indices=(), lr=1e-2, max_norm=None, ema=None, optimizer="adam", **options
):
    """What a torch user writes -> losses and averaged weights; trains in place."""
    parameters = [p for module in (net, *embeddings) for p in module.parameters()]
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer](parameters, lr=lr, **options)
    average = [p.detach().clone() for p in parameters]
    losses = []
    for step, begin in enumerate(range(0, len(x), BATCH)):
        rows = slice(begin, begin + BATCH)
        columns = [x[rows]] + [e(i[rows]) for e, i in zip(embeddings, indices, strict=True)]
        loss = F.mse_loss(net(torch.cat(columns, 1)), y[rows])
        made.zero_grad()
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        made.step()
        losses.append(loss.item())
        if ema is not None:
            decay = min(ema, (2 + step) / (11 + step))
            for mean, p in zip(average, parameters, strict=True):
                mean.lerp_(p.detach(), 1 - decay)
    return torch.tensor(losses), average


def flat(modules) -> Tensor:
    return torch.cat([p.detach().flatten() for module in modules for p in module.parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    """RMS of the difference over the RMS of b."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def assert_same(
    net, x, y, *, embeddings=(), indices=(), lr=1e-2, weight_decay=0.0, ema=None, **options
) -> None:
    """Both loops in float32, and torch's in float64: ours is as near to that as torch's.

    The two float32 loops part from each other as rounding does in a run of Adam; over 100 steps the factor
    stays below 3 for losses that fall smoothly.
    """
    exact = copy.deepcopy(nn.ModuleList([net, *embeddings])).double()
    twin = copy.deepcopy(nn.ModuleList([net, *embeddings]))
    loop = {"lr": lr, "weight_decay": weight_decay, "ema": ema, **options}
    losses64, average64 = torch_loop(
        exact[0], x.double(), y.double(), embeddings=list(exact)[1:], indices=indices, **loop
    )
    losses32, average32 = torch_loop(twin[0], x, y, embeddings=list(twin)[1:], indices=indices, **loop)
    trainer = FusedTrainer(net, embeddings=embeddings, weight_decay=weight_decay, ema=ema, **options)
    losses = trainer.run(x, y, batch_size=BATCH, lr=lr, indices=indices)
    ours = [net, *embeddings]
    bound = 3 * distance(flat(twin), flat(exact)) + 1e-6
    assert distance(flat(ours), flat(exact)) <= bound
    assert bound < 1e-3
    assert distance(losses, losses64) <= 3 * distance(losses32, losses64) + 1e-6
    if ema is not None:
        found, expected, same = (
            torch.cat([t.flatten() for t in ts]).double()
            for ts in ([trainer.average()[p] for m in ours for p in m.parameters()], average64, average32)
        )
        assert distance(found, expected) <= 3 * distance(same, expected) + 1e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_trains_as_in_torch(activation):
    assert_same(network(3, 20, 17, 2, activation=ACTIVATIONS[activation]), *problem(3, 2))


@pytest.mark.parametrize("widths", [(1, 1), (2, 16, 1), (5, 7, 130, 9), (40, 33, 3)])
def test_each_shape_trains_as_in_torch(widths):
    assert_same(network(*widths), *problem(widths[0], widths[-1]))


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "optimizer": "adamw"},
        {"max_norm": 0.02},
        {"ema": 0.95},
        {"max_norm": 0.1, "ema": 0.9, "weight_decay": 0.01, "optimizer": "adamw"},
    ],
)
@pytest.mark.parametrize("embedded", [False, True])
def test_each_option_means_what_it_does_in_torch(options, embedded):
    x, y = problem(3, 2)
    if not embedded:
        return assert_same(network(3, 24, 2), x, y, **options)
    embeddings = [nn.Embedding(50, 6), nn.Embedding(3, 4)]
    generator = torch.Generator().manual_seed(1)
    indices = [
        torch.randint(50, (len(x),), generator=generator),
        torch.randint(3, (len(x),), generator=generator),
    ]
    assert_same(network(13, 24, 2), x, y, embeddings=embeddings, indices=indices, **options)


def test_rows_of_a_table_move_in_the_steps_that_do_not_use_them():
    """One index per batch, as if t were drawn once: each of 40 rows is used every 40 steps or never."""
    x, y = problem(2, 2, 200 * BATCH)
    index = (torch.arange(len(x)) // BATCH) % 40
    for options in ({}, {"weight_decay": 0.01}, {"ema": 0.99}):
        assert_same(network(8, 16, 2), x, y, embeddings=[nn.Embedding(45, 6)], indices=[index], **options)


# ---- the same bits ----


def trained_core(threads: int = 1, isa: str = "", calls: int = 1) -> Tensor:
    """Everything at once: a trained table, a fixed one with layers, an average; layers of several units."""
    net = network(12, 140, 48, 3)
    embedding = nn.Embedding(30, 5)
    side = network(1, 16, 4, activation=nn.Tanh())
    fixed = torch.linspace(-0.5, 0.5, 50)[:, None]
    core = Core(
        layers_of(net),
        [Condition(embedding.weight), Condition(fixed, tuple(layers_of(side)))],
        ema=0.9,
        isa=isa,
    )
    generator = torch.Generator().manual_seed(2)
    x, y = problem(3, 3, 130 * 6)
    indices = [torch.randint(n, (len(x),), generator=generator) for n in (30, 50)]
    for part in range(calls):
        rows = slice(len(x) * part // calls, len(x) * (part + 1) // calls)
        core.run(
            x[rows], y[rows], batch_size=130, lr=3e-3, indices=[i[rows] for i in indices], threads=threads
        )
    core.store()
    return torch.cat([flat([net, embedding, side]), *(mean.flatten() for mean in core.average())])


def test_threads_and_calls_change_no_bit():
    one = trained_core()
    assert torch.equal(trained_core(threads=2), one)
    assert torch.equal(trained_core(threads=3), one)
    assert torch.equal(trained_core(calls=3), one)


def test_the_norm_of_the_gradient_does_not_depend_on_threads():
    results = []
    for threads in (1, 2, 5):
        net = network(3, 200, 200, 2)
        x, y = problem(3, 2, 100 * 20)
        FusedTrainer(net, max_norm=0.01).run(x, y, batch_size=100, lr=1e-3, threads=threads)
        results.append(flat([net]))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("isa", _cpu.isas())
def test_every_instruction_set_trains_to_the_same_bits(isa):
    assert torch.equal(trained_core(isa=isa), trained_core())


# ---- use and misuse ----


def test_rates_are_those_of_each_step():
    """A rate of 0 leaves the weights alone; the moments go on."""
    net = network(2, 8, 1)
    x, y = problem(2, 1, 4 * BATCH)
    before = flat([net])
    trainer = FusedTrainer(net)
    trainer.run(x, y, batch_size=BATCH, lr=np.zeros(4))
    assert torch.equal(flat([net]), before)
    losses = trainer.run(x, y, batch_size=BATCH, lr=torch.tensor([0.0, 0.0, 0.1, 0.1]))
    assert not torch.equal(flat([net]), before)
    assert losses[1] == pytest.approx(
        F.mse_loss(network(2, 8, 1)(x[BATCH : 2 * BATCH]), y[BATCH : 2 * BATCH]).item()
    )


def test_an_exception_of_the_progress_stops_it_between_two_steps():
    """As Ctrl-C does, which is asked for at the same place: the network has the weights of the steps done."""

    class Stop(Exception):
        pass

    seen = []

    def progress(done: int) -> None:
        seen.append(done)
        raise Stop

    net, twin = network(2, 64, 1), network(2, 64, 1)
    x, y = problem(2, 1, 20_000 * BATCH)
    with pytest.raises(Stop):
        FusedTrainer(net).run(x, y, batch_size=BATCH, lr=1e-3, progress=progress)
    (done,) = seen
    assert 0 < done < 20_000
    FusedTrainer(twin).run(x[: done * BATCH], y[: done * BATCH], batch_size=BATCH, lr=1e-3)
    assert torch.equal(flat([net]), flat([twin]))


def test_no_rows_are_no_steps():
    net = network(2, 8, 1)
    before = flat([net])
    assert FusedTrainer(net).run(torch.empty(0, 2), torch.empty(0, 1), batch_size=8, lr=0.1).shape == (0,)
    assert torch.equal(flat([net]), before)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked() -> nn.Sequential:
    net = network(2, 8, 1)
    net[0].register_forward_hook(lambda *_: None)
    return net


def frozen() -> nn.Sequential:
    net = network(2, 8, 1)
    net[2].bias.requires_grad_(False)
    return net


def shared() -> nn.Sequential:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Linear(2, 2), "network"),
        (nn.Sequential, "network"),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), r"network\[0\]"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), r"network\[2\]"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout()), r"network\[1\]"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Softplus(beta=2)), r"network\[1\]"),
        (lambda: nn.Sequential(Doubled(2, 2)), r"network\[0\]"),
        (lambda: network(2, 8, 1).double(), "float32"),
        (hooked, r"network\[0\]"),
        (frozen, "trainable"),
        (shared, "share"),
    ],
)
def test_a_network_that_it_cannot_train_is_refused(make, said):
    with pytest.raises(NotFusable, match=said):
        FusedTrainer(make())


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"max_norm": 1.0}, {"sparse": True}])
def test_an_embedding_with_options_is_refused(options):
    with pytest.raises(NotFusable, match="embedding"):
        FusedTrainer(network(6, 8, 1), embeddings=[nn.Embedding(5, 4, **options)])


GOOD = {
    "inputs": torch.zeros(10, 2),
    "targets": torch.zeros(10, 1),
    "indices": [torch.zeros(10, dtype=torch.int64)],
}


@pytest.mark.parametrize(
    ("given", "error", "name"),
    [
        ({"inputs": torch.zeros(10, 3)}, ValueError, "inputs"),
        ({"inputs": torch.zeros(10, 2).double()}, ValueError, "inputs"),
        ({"inputs": torch.zeros(10, 2, requires_grad=True)}, ValueError, "inputs"),
        ({"targets": torch.zeros(9, 1)}, ValueError, "targets"),
        ({"targets": np.zeros((10, 1))}, TypeError, "targets"),
        ({"indices": []}, ValueError, "indices"),
        ({"indices": [torch.zeros(10)]}, ValueError, r"indices\[0\]"),
        ({"indices": [torch.full((10,), 5)]}, ValueError, r"indices\[0\]"),
        ({"indices": [torch.full((10,), -1)]}, ValueError, r"indices\[0\]"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": np.zeros(3)}, ValueError, "lr"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_batches_are_named_and_nothing_is_trained(given, error, name):
    net, embedding = network(6, 8, 1), nn.Embedding(5, 4)
    trainer, before = FusedTrainer(net, embeddings=[embedding]), flat([net, embedding])
    with pytest.raises(error, match=f"^{name}"):
        trainer.run(**{**GOOD, "batch_size": 5, "lr": 0.1, **given})
    assert torch.equal(flat([net, embedding]), before)


def test_a_diverging_network_says_so_in_its_losses():
    net = network(2, 8, 1, activation=nn.ReLU())
    x, y = problem(2, 1, 20 * BATCH)
    losses = FusedTrainer(net, max_norm=1.0).run(x, y * 1e30, batch_size=BATCH, lr=1.0)
    assert not torch.isfinite(losses[-1])


def test_a_second_moment_that_overflows_says_so_in_the_losses():
    """In torch such a weight stands still from then on, at a finite loss."""
    net = network(2, 8, 1, activation=nn.ReLU())
    x, y = problem(2, 1, 4 * BATCH)
    losses = FusedTrainer(net).run(x * 1e18, y, batch_size=BATCH, lr=1e-3)
    assert torch.isfinite(losses[0]) and not torch.isfinite(losses[1:]).any()
