"""What bad input gets: an error that names the argument, the value and what is accepted; nothing is written.

One row per (argument, fault). `call` gets a Bench with good objects to spoil; every message has the form
"argument: got GIVEN; accepted: WHAT", and the three regular expressions are searched in those three parts.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input import INF, META, NAN, ROW, SCHEDULE, Bench, Case, Either, T, Ty, V, net, overlapping, spoilt
from bad_input_sampler import SAMPLER_CASES
from torch import nn

import diffusion_fast as df
from diffusion_fast.models import ConditionalMLPDenoiser, MLPDenoiser


def aliased_step(b: Bench) -> Any:
    given, out = overlapping(b)
    return b.step(model_output=given, out=out)


def row(**changes: Any) -> Any:
    return dataclasses.replace(ROW, **changes)


GUIDED_ROW = row(guidance=7.5)
HISTORY_ROW = row(c2=0.5, terms=ROW.terms | 1 << 8)
PUSH_ROW = row(push=True, p_F=1.0, terms=ROW.terms | 1 << 2 | 1 << 11)


def shared_history(b: Bench) -> Any:
    h = b.out()
    return b.step(row=PUSH_ROW, history=[h, h])


def history_is_x(b: Bench) -> Any:
    x = b.out()
    return b.step(row=PUSH_ROW, x=x, history=[x], out=None)


def uncond_without_evaluation(b: Bench) -> Any:
    unused = {"row": row(eval=False, e=0.0), "model_output": None}
    return b.step(**unused, uncond_output=torch.ones(4, 2), guidance_scale=2.0)


def swapped(part: nn.Module, kind: type[MLPDenoiser] = MLPDenoiser, at: int = 1, **options: Any) -> Any:
    """A model with another module put in one's place, or behind the last."""
    with torch.random.fork_rng():
        model = kind(2, hidden=(8,), n_steps=T, time_dim=4, **options)
    model.model.add_module(str(at), part)
    return model


PLAN_ROWS = 80
PLAN_OPS = PLAN_ROWS + 80 * T + 64
PLAN_BLOB = PLAN_OPS + 2 * 64

# fmt: off
CASES = [
    *SAMPLER_CASES,
    # ops.reverse_step
    Case("reverse_step x", "type", lambda b: b.step(x=[[1.0, 1.0]] * 4), Ty, "list", "tensor"),
    Case("reverse_step x", "dtype", lambda b: b.step(x=torch.ones(4, 2).double()), V, "float64", "bfloat16"),
    Case("reverse_step x", "rank", lambda b: b.step(x=torch.tensor(1.0)), V, r"shape \(\)", "axis"),
    Case("reverse_step x", "device", lambda b: b.step(x=torch.ones(4, 2, device=META)), V, "on meta", "CPU"),
    Case("reverse_step x", "requires grad", lambda b: b.step(x=torch.ones(4, 2, requires_grad=True)),
         V, "requires grad", "detach"),
    Case("reverse_step x", "complex", lambda b: b.step(x=torch.ones(4, 2, dtype=torch.complex64)),
         V, "complex64", "float32"),
    Case("reverse_step model_output", "shape", lambda b: b.step(model_output=torch.ones(4, 1)),
         V, r"\(4, 1\)", r"\(4, 2\)"),
    Case("reverse_step model_output", "dtype", lambda b: b.step(model_output=torch.ones(4, 2).half()),
         V, "float16", "float32"),
    Case("reverse_step model_output", "missing", lambda b: b.step(model_output=None), Ty, "None", "tensor"),
    Case("reverse_step model_output", "requires grad",
         lambda b: b.step(model_output=torch.ones(4, 2, requires_grad=True)), V, "requires grad", "detach"),
    Case("reverse_step model_output", "row without evaluation", lambda b: b.step(row=row(eval=False, e=0.0)),
         V, "tensor", "None"),
    Case("reverse_step row", "type", lambda b: b.step(row=3), Ty, "3", "StepRow"),
    Case("reverse_step row", "a table", lambda b: b.step(row=df.solvers.ddpm(SCHEDULE)),
         Ty, "StepTable", "StepRow"),
    Case("reverse_step row", "NaN", lambda b: b.step(row=row(a=NAN)), V, "nan", "finite", "row.*"),
    Case("reverse_step row", "beyond float32", lambda b: b.step(row=row(a=1e300)),
         V, r"1e\+300", "float32|finite", "row.*"),
    Case("reverse_step row", "a coefficient that terms leave out", lambda b: b.step(row=row(b=0.5)),
         V, "0.5", "terms", "row.*"),
    Case("reverse_step seed", "no source of noise", lambda b: b.step(seed=None),
         V, "None", "seed, noise or generator"),
    Case("reverse_step seed", "2^64", lambda b: b.step(seed=2**64), V, str(2**64), str(2**64 - 1)),
    Case("reverse_step noise", "two sources", lambda b: b.step(noise=torch.ones(4, 2)),
         V, "seed and noise", "one source"),
    Case("reverse_step noise", "shape", lambda b: b.step(seed=None, noise=torch.ones(2, 4)),
         V, r"\(2, 4\)", r"\(4, 2\)"),
    Case("reverse_step noise", "requires grad",
         lambda b: b.step(seed=None, noise=torch.ones(4, 2, requires_grad=True)),
         V, "requires grad", "detach"),
    Case("reverse_step generator", "type", lambda b: b.step(seed=None, generator=7),
         Ty, "7", "torch.Generator"),
    Case("reverse_step step", "negative", lambda b: b.step(step=-1), V, "-1", "from 0"),
    Case("reverse_step step", "above 2^28", lambda b: b.step(step=1 << 28), V, "268435456", "268435455"),
    Case("reverse_step start", "start + n above 2^48", lambda b: b.step(start=2**48 - 1),
         V, "281474976710655", r"2\^48"),
    Case("reverse_step start", "float", lambda b: b.step(start=0.0), Ty, "0.0", "integer"),
    Case("reverse_step start", "bad, with a generator", lambda b: b.step(seed=b.generator, start=-1),
         V, "-1", "from 0"),
    Case("reverse_step uncond_output", "shape",
         lambda b: b.step(uncond_output=torch.ones(4), guidance_scale=2.0), V, r"\(4,\)", r"\(4, 2\)"),
    Case("reverse_step uncond_output", "row without evaluation",
         uncond_without_evaluation,
         V, "tensor", "None"),
    Case("reverse_step uncond_output", "missing for a guided row",
         lambda b: b.step(row=GUIDED_ROW), V, "None", "guided by 7.5"),
    Case("reverse_step prediction", "True", lambda b: b.step(prediction=True), Ty, "True", "a tensor like x"),
    Case("reverse_step guidance_scale", "without uncond_output", lambda b: b.step(guidance_scale=2.0),
         V, "2.0", "None"),
    Case("reverse_step guidance_scale", "missing", lambda b: b.step(uncond_output=torch.ones(4, 2)),
         V, "None", "finite number"),
    Case("reverse_step guidance_scale", "length",
         lambda b: b.step(uncond_output=torch.ones(4, 2), guidance_scale=torch.ones(3)),
         V, r"\(3,\)", r"\(4,\)"),
    Case("reverse_step guidance_scale", "NaN",
         lambda b: b.step(uncond_output=torch.ones(4, 2), guidance_scale=torch.full((4,), NAN)),
         V, "nan", "finite"),
    Case("reverse_step guidance_scale", "bool",
         lambda b: b.step(uncond_output=torch.ones(4, 2), guidance_scale=True), Ty, "True", "finite number"),
    Case("reverse_step guidance_scale", "requires grad",
         lambda b: b.step(uncond_output=torch.ones(4, 2), guidance_scale=torch.ones(4, requires_grad=True)),
         V, "requires grad", r"guidance_scale\.detach\(\)"),
    Case("reverse_step doubled", "unknown",
         lambda b: b.step(model_output=torch.ones(8, 2), guidance_scale=2.0, doubled="cond"),
         V, "'cond'", "did you mean 'cond_first'"),
    Case("reverse_step doubled", "bool",
         lambda b: b.step(model_output=torch.ones(8, 2), guidance_scale=2.0, doubled=True),
         Ty, "True", "uncond_first, cond_first"),
    Case("reverse_step model_output", "not doubled",
         lambda b: b.step(guidance_scale=2.0, doubled="cond_first"), V, r"\(4, 2\)", r"\(8, 2\)"),
    Case("reverse_step model_output", "doubled, unsaid",
         lambda b: b.step(model_output=torch.ones(8, 2)), V, r"\(8, 2\)", r"\(4, 2\)"),
    Case("reverse_step uncond_output", "with doubled",
         lambda b: b.step(model_output=torch.ones(8, 2), uncond_output=torch.ones(4, 2), guidance_scale=2.0,
                          doubled="cond_first"), V, "tensor", "None with doubled"),
    Case("reverse_step guidance_scale", "missing, doubled",
         lambda b: b.step(model_output=torch.ones(8, 2), doubled="cond_first"), V, "None", "finite number"),
    Case("reverse_step history", "too short", lambda b: b.step(row=HISTORY_ROW, history=[b.out()]),
         V, "1 tensors", "2 to 3"),
    Case("reverse_step history", "too long", lambda b: b.step(history=[b.out() for _ in range(4)]),
         V, "4 tensors", "0 to 3"),
    Case("reverse_step history", "a tensor", lambda b: b.step(history=b.out(3, 4, 2)),
         Ty, "tensor", "list or tuple"),
    Case("reverse_step history", "shape", lambda b: b.step(history=[b.out(), b.out(4, 3)]),
         V, r"\(4, 3\)", r"\(4, 2\)", r"history\[1\]"),
    Case("reverse_step history", "not contiguous", lambda b: b.step(history=[b.out(2, 4).T]),
         V, r"strides \(1, 4\)", "contiguous", r"history\[0\]"),
    Case("reverse_step history", "one tensor twice", shared_history,
         V, "tensor", "overlaps no", r"history\[1\]"),
    Case("reverse_step history", "x itself", history_is_x, V, "tensor", "overlaps no", r"history\[0\]"),
    Case("reverse_step log_variance", "shape", lambda b: b.step(log_variance=torch.ones(4)),
         V, r"\(4,\)", r"\(4, 2\)"),
    Case("reverse_step out", "dtype", lambda b: b.step(out=b.out(4, 2, dtype=torch.bfloat16)),
         V, "bfloat16", "float32"),
    Case("reverse_step out", "not contiguous", lambda b: b.step(out=b.out(2, 4).T),
         V, r"strides \(1, 4\)", "contiguous"),
    Case("reverse_step out", "device", lambda b: b.step(out=torch.empty(4, 2, device=META)),
         V, "on meta", "CPU"),
    Case("reverse_step out", "overlap", aliased_step, V, "tensor", "memory that"),
    # noise.normal
    Case("normal n", "negative", lambda b: b.normal(n=-1), V, "-1", "from 0"),
    Case("normal n", "2^62 bytes", lambda b: b.normal(n=2**48, dim=2**12), V, "281474976710656", r"2\^62"),
    Case("normal dim", "zero", lambda b: b.normal(dim=0), V, "0", "from 1"),
    Case("normal dim", "size overflows", lambda b: b.normal(n=2**48, dim=2**13), V, "8192", "1 to 4096"),
    Case("normal seed", "bool", lambda b: b.normal(seed=True), Ty, "True", "integer"),
    Case("normal step", "2^28", lambda b: b.normal(step=1 << 28), V, "268435456", "268435455"),
    Case("normal purpose", "unknown", lambda b: b.normal(purpose="init"),
         V, "'init'", "did you mean 'initial'"),
    Case("normal substream", "2^16", lambda b: b.normal(substream=1 << 16), V, "65536", "65535"),
    Case("normal start", "start + n above 2^48", lambda b: b.normal(start=2**48),
         V, "281474976710656", r"2\^48"),
    # NoiseSchedule
    Case("NoiseSchedule betas", "empty", lambda b: df.NoiseSchedule([]), V, r"\[\]", "1 to 1048576"),
    Case("NoiseSchedule betas", "rank", lambda b: df.NoiseSchedule([[0.1]]), V, r"\[\[0\.1\]\]", "1-D"),
    Case("NoiseSchedule betas", "NaN", lambda b: df.NoiseSchedule([0.1, NAN]),
         V, "nan at index 1", r"\(0, 1\]"),
    Case("NoiseSchedule betas", "infinite", lambda b: df.NoiseSchedule([INF]),
         V, "inf at index 0", r"\(0, 1\]"),
    Case("NoiseSchedule betas", "negative", lambda b: df.NoiseSchedule([-0.1]),
         V, "-0.1 at index 0", r"\(0, 1\]"),
    Case("NoiseSchedule betas", "1 in the middle", lambda b: df.NoiseSchedule([1.0, 0.5]),
         V, "1.0 at index 0", "last"),
    Case("NoiseSchedule betas", "a name", lambda b: df.NoiseSchedule("linear"),
         Ty, "'linear'", "real numbers"),
    Case("NoiseSchedule betas", "bools", lambda b: df.NoiseSchedule([True]), Ty, "True", "real numbers"),
    Case("NoiseSchedule betas", "complex", lambda b: df.NoiseSchedule([0.1j]), Ty, "0.1j", "real numbers"),
    Case("NoiseSchedule betas", "ragged", lambda b: df.NoiseSchedule([[0.1], [0.1, 0.2]]),
         Ty, r"\[\[0\.1\]", "real numbers"),
    Case("NoiseSchedule betas", "device", lambda b: df.NoiseSchedule(torch.ones(3, device=META)),
         Either, "on meta", "numbers"),
    Case("NoiseSchedule betas", "sparse", lambda b: df.NoiseSchedule(torch.ones(3).to_sparse()),
         Either, "tensor", "numbers"),
    Case("NoiseSchedule betas", "requires grad",
         lambda b: df.NoiseSchedule(torch.ones(3, requires_grad=True)), V, "tensor", "not require grad"),
    Case("NoiseSchedule n_steps", "zero", lambda b: df.NoiseSchedule.linear(0), V, "0", "from 1"),
    Case("NoiseSchedule n_steps", "bool", lambda b: df.NoiseSchedule.linear(True), Ty, "True", "integer"),
    Case("NoiseSchedule n_steps", "too many", lambda b: df.NoiseSchedule.cosine(2**21),
         V, "2097152", "1048576"),
    Case("NoiseSchedule beta_end", "above 1", lambda b: df.NoiseSchedule.linear(5, beta_end=1.5),
         V, "1.5", r"\(0, 1\)"),
    Case("NoiseSchedule beta_start", "string", lambda b: df.NoiseSchedule.sigmoid(5, beta_start="0.1"),
         Ty, "'0.1'", "number"),
    Case("NoiseSchedule s", "NaN", lambda b: df.NoiseSchedule.cosine(5, s=NAN), V, "nan", "finite"),
    Case("NoiseSchedule max_beta", "1", lambda b: df.NoiseSchedule.cosine(5, max_beta=1.0),
         V, "1.0", r"\(0, 1\)"),
    Case("NoiseSchedule name", "unknown", lambda b: df.NoiseSchedule.from_name("linaer", 5),
         V, "'linaer'", "did you mean 'linear'"),
    Case("NoiseSchedule options", "unknown", lambda b: df.NoiseSchedule.from_name("linear", 5, beta=1),
         V, "'beta'", "beta_start, beta_end", "options of schedule 'linear'"),
    Case("zero_terminal_snr betas", "one step", lambda b: df.NoiseSchedule([0.1]).zero_terminal_snr(),
         V, "do not differ", "at least 2"),
    # solvers
    Case("solvers name", "unknown", lambda b: df.solvers.get("dim"),
         V, "'dim'", "did you mean 'ddim'", "solver"),
    Case("solvers schedule", "type", lambda b: df.solvers.ddim(0.1), Ty, "0.1", "NoiseSchedule"),
    Case("solvers spacing", "unknown", lambda b: df.solvers.ddpm(SCHEDULE, spacing="trail"),
         V, "'trail'", "did you mean 'trailing'"),
    Case("solvers timesteps", "duplicated", lambda b: df.solvers.ddpm(SCHEDULE, timesteps=[5, 3, 3]),
         V, "3 twice, at index 1 and 2", "strictly descending"),
    Case("solvers timesteps", "ascending", lambda b: df.solvers.ddpm(SCHEDULE, timesteps=[3, 5]),
         V, "5 at index 1", "strictly descending"),
    Case("solvers timesteps", "T", lambda b: df.solvers.ddpm(SCHEDULE, timesteps=[10]),
         V, "10 at index 0", "0 to 9"),
    Case("solvers timesteps", "negative", lambda b: df.solvers.ddim(SCHEDULE, timesteps=[3, -1]),
         V, "-1 at index 1", "0 to 9"),
    Case("solvers timesteps", "empty", lambda b: df.solvers.ddim(SCHEDULE, timesteps=[]),
         V, r"\[\]", "strictly descending"),
    Case("solvers timesteps", "floats", lambda b: df.solvers.ddim(SCHEDULE, timesteps=[3.0]),
         Ty, "3.0", "integers"),
    Case("solvers timesteps", "with steps", lambda b: df.solvers.ddim(SCHEDULE, steps=2, timesteps=[3]),
         V, r"\[3\]", "not both"),
    Case("solvers timesteps", "device",
         lambda b: df.solvers.ddim(SCHEDULE, timesteps=torch.ones(3, dtype=torch.int64, device=META)),
         Either, "on meta", "integers"),
    Case("solvers variance", "unknown", lambda b: df.solvers.ddpm(SCHEDULE, variance="Beta"),
         V, "'Beta'", "did you mean 'beta'"),
    Case("solvers last_noise", "int", lambda b: df.solvers.ddpm(SCHEDULE, last_noise=1),
         Ty, "1", "True or False"),
    Case("solvers last_noise", "posterior variance", lambda b: df.solvers.ddpm(SCHEDULE, last_noise=True),
         V, "True", "False with"),
    Case("solvers eta", "above 1", lambda b: df.solvers.ddim(SCHEDULE, eta=1.5), V, "1.5", r"\[0, 1\]"),
    Case("solvers eta", "bool", lambda b: df.solvers.ddim(SCHEDULE, eta=True), Ty, "True", "finite number"),
    # train
    Case("train model", "type", lambda b: b.train("mlp"), Ty, "'mlp'", "nn.Module"),
    Case("train model", "nothing to train", lambda b: b.train(nn.ReLU()), V, "without trainable", "module"),
    Case("train model", "NaN weight", lambda b: b.train(spoilt(NAN)),
         V, "nan at", "finite", r"model\.model\.0\.bias"),
    Case("train model", "float64", lambda b: b.train(net().double()), V, "float64", "float32"),
    Case("train model", "not initialised", lambda b: b.train(nn.LazyLinear(2)),
         V, "not initialised", "call the lazy module", r"model\.weight"),
    Case("train schedule", "longer than model.n_steps",
         lambda b: b.train(schedule=df.NoiseSchedule.linear(11)), V, "11 steps", "n_steps = 10"),
    Case("train data", "list", lambda b: b.train(data=[[0.0, 1.0]]), Ty, r"\[\[0\.0", "array or tensor"),
    Case("train data", "NaN", lambda b: b.train(data=torch.full((4, 2), NAN)), V, "nan at", "finite"),
    Case("train data", "dim", lambda b: b.train(data=torch.zeros(4, 3)), V, r"\(4, 3\)", r"\(2,\)"),
    Case("train data", "rank", lambda b: b.train(data=torch.zeros(4)), V, r"\(4,\)", r"\(n, dim\)"),
    Case("train data", "empty", lambda b: b.train(data=np.zeros((0, 2))), V, r"\(0, 2\)", "n >= 1"),
    Case("train data", "objects", lambda b: b.train(data=np.array([[None, 1]])),
         Ty, "object array", "numbers"),
    Case("train data", "requires grad", lambda b: b.train(data=torch.zeros(4, 2, requires_grad=True)),
         V, "requires grad", "detach"),
    Case("train data", "device", lambda b: b.train(data=torch.zeros(4, 2, device=META)),
         V, "on meta", "tensor"),
    Case("train data", "sparse", lambda b: b.train(data=torch.ones(4, 2).to_sparse()),
         Either, "tensor", "tensor"),
    Case("train model", "device", lambda b: b.train(net().to(META)),
         V, "on meta", "dense weights with values", r"model\..*"),
    Case("train epochs", "zero", lambda b: b.train(epochs=0), V, "0", "from 1"),
    Case("train batch_size", "string", lambda b: b.train(batch_size="8"), Ty, "'8'", "integer"),
    Case("train lr", "zero", lambda b: b.train(lr=0.0), V, "0.0", r"\(0, "),
    Case("train lr_decay", "unknown", lambda b: b.train(lr_decay="cos"), V, "'cos'", "did you mean 'cosine'"),
    Case("train optimizer", "unknown", lambda b: b.train(optimizer="adm"), V, "'adm'", "did you mean 'adam'"),
    Case("train weight_decay", "negative", lambda b: b.train(weight_decay=-0.1), V, "-0.1", r"\[0, "),
    Case("train validation", "1", lambda b: b.train(validation=1.0), V, "1.0", "fraction"),
    Case("train validation", "dim", lambda b: b.train(validation=np.zeros((3, 5))),
         V, r"\(3, 5\)", r"\(2,\)"),
    Case("train patience", "without validation", lambda b: b.train(patience=3), V, "3", "validation"),
    Case("train ema", "1", lambda b: b.train(ema=1.0), V, "1.0", r"\(0, 1\)"),
    Case("train seed", "negative", lambda b: b.train(seed=-1), V, "-1", "from 0"),
    Case("train progress", "int", lambda b: b.train(progress=0), Ty, "0", "True or False"),
    Case("train prediction_type", "unknown", lambda b: b.train(prediction_type="noise"),
         V, "'noise'", "epsilon"),
    Case("train labels", "without classes", lambda b: b.train(labels=[0] * 32), V, r"\[0, 0", "None"),
    Case("train labels", "not given", lambda b: b.train(net(3)), V, "None", "0 to 2.*has 3 classes"),
    Case("train labels", "out of range", lambda b: b.train(net(3), labels=[3] * 32), V, r"3", "0 to 2"),
    Case("train labels", "length", lambda b: b.train(net(3), labels=[0] * 31), V, r"\[0, 0", r"\(32,\)"),
    Case("train labels", "floats", lambda b: b.train(net(3), labels=np.zeros(32)),
         Ty, "float64 array", "integers"),
    Case("train labels", "device",
         lambda b: b.train(net(3), labels=torch.zeros(32, dtype=torch.int64, device=META)),
         Either, "on meta", "integers"),
    Case("train label_dropout", "without labels", lambda b: b.train(label_dropout=0.5), V, "0.5", "labels"),
    Case("train label_dropout", "1", lambda b: b.train(net(3), labels=[0] * 32, label_dropout=1.0),
         V, "1.0", r"\[0, 1\)"),
    # save and load
    Case("save path", "type", lambda b: b.save(path=5), Ty, "5", "str|path"),
    Case("save path", "folder missing", lambda b: b.save(path=b.folder / "no" / "x"),
         V, "no/x', whose folder does not exist", "folder that exists"),
    Case("save path", "a file for a folder", lambda b: b.save(path=b.good / "x"),
         V, "good/x', whose folder does not exist", "folder that exists"),
    Case("save path", "a folder", lambda b: b.save(path=b.folder), V, "no regular file", "a file name"),
    Case("save path", "empty", lambda b: b.save(path=""), V, "'', which is no regular file", "a file name"),
    Case("save path", "null character", lambda b: b.save(path=b.folder / "a\0b"), V, "null", "a file name"),
    Case("save path", "name too long", lambda b: b.save(path=b.folder / ("x" * 250)),
         V, "cannot be written", "a file name in a folder"),
    Case("save model", "foreign", lambda b: b.save(model=nn.Linear(2, 2)), Ty, "Linear", "MLPDenoiser"),
    Case("save model", "NaN weight", lambda b: b.save(model=spoilt(NAN)),
         V, "nan at", "finite", r"model\.model\.0\.bias"),
    Case("save model", "float64", lambda b: b.save(model=net().double()),
         V, "float64", "float32", r"model\..*"),
    Case("save model", "device", lambda b: b.save(model=net().to(META)),
         V, "on meta", "weights with values", r"model\..*"),
    Case("save model", "another activation", lambda b: b.save(model=swapped(nn.ReLU())),
         V, r"ReLU\(\)", r"Tanh\(\), as its config says", r"model\.model\.1"),
    Case("save model", "another slope",
         lambda b: b.save(model=swapped(nn.LeakyReLU(0.2), activation="leaky_relu")),
         V, r"negative_slope=0\.2", r"negative_slope=0\.01\), as its config says", r"model\.model\.1"),
    Case("save model", "another activation, conditional",
         lambda b: b.save(model=swapped(nn.ELU(), ConditionalMLPDenoiser, n_classes=3)),
         V, "ELU", r"ReLU\(\), as its config says", r"model\.model\.1"),
    Case("save model", "a module more", lambda b: b.save(model=swapped(nn.Dropout(), at=3)),
         V, "Dropout", "None, as its config says", r"model\.model\.3"),
    Case("save schedule", "long name",
         lambda b: b.save(schedule=df.NoiseSchedule([0.1], name="n" * 1001)),
         V, "1001 characters", "at most 1000"),
    Case("save schedule", "type", lambda b: b.save(schedule=[0.1]), Ty, r"\[0\.1\]", "NoiseSchedule"),
    Case("save schedule", "longer than model.n_steps", lambda b: b.save(schedule=df.NoiseSchedule.linear(11)),
         V, "11 steps", "10"),
    Case("save standardiser", "width", lambda b: b.save(standardiser=df.Standardiser([0.0], [1.0])),
         V, r"\(1,\)", "2 columns"),
    Case("save metadata", "NaN", lambda b: b.save(metadata={"loss": NAN}), Ty, "nan", "JSON"),
    Case("save metadata", "too long", lambda b: b.save(metadata={"notes": "n" * (1 << 24)}),
         V, "characters of JSON", f"at most {1 << 24}"),
    Case("save metadata", "list", lambda b: b.save(metadata=[1]), Ty, r"\[1\]", "dictionary"),
    Case("load path", "type", lambda b: df.load(5), Ty, "5", "str|path"),
    Case("load path", "missing", lambda b: df.load(b.folder / "nowhere"),
         (FileNotFoundError,), "nowhere", "checkpoint"),
    Case("load path", "a folder", lambda b: df.load(b.folder), (FileNotFoundError,), "no file", "checkpoint"),
    Case("load path", "empty", lambda b: df.load(b.file(b"")), V, "given", "checkpoint written by save"),
    Case("load path", "truncated", lambda b: df.load(b.file(b.good.read_bytes()[:-9])),
         V, "given", "checkpoint written by save"),
    Case("load path", "a pickle", lambda b: df.load(b.file(b"\x80\x04\x95" + bytes(64))),
         V, "given", "checkpoint written by save"),
    Case("load path", "header of 2^63 bytes", lambda b: df.load(b.file(struct.pack("<Q", 2**63) + bytes(64))),
         V, "header", "checkpoint written by save"),
    Case("load path", "another version",
         lambda b: df.load(b.checkpoint(lambda h: h.update(format_version=9))),
         V, "format_version: 1 was expected", "format version 1"),
    Case("load path", "unknown class",
         lambda b: df.load(b.checkpoint(lambda h: h["model"].update({"class": "os.system"}))),
         V, "'os.system'", "MLPDenoiser|checkpoint"),
    Case("load path", "terabytes of weights",
         lambda b: df.load(b.checkpoint(lambda h: h["model"]["config"].update(hidden=[65536] * 64))),
         V, "tensor", "checkpoint written by save"),
    Case("load path", "bad configuration",
         lambda b: df.load(b.checkpoint(lambda h: h["model"]["config"].update(activation="exec"))),
         V, "activation: got 'exec'", "checkpoint"),
    Case("load path", "missing tensor", lambda b: df.load(b.checkpoint(model__model__0__bias=None)),
         V, r"lacks the tensors \['model\.model\.0\.bias'\]", "checkpoint"),
    Case("load path", "misshapen tensor",
         lambda b: df.load(b.checkpoint(model__model__0__bias=torch.zeros(9))), V, r"\[9\]", "checkpoint"),
    Case("load path", "NaN weight",
         lambda b: df.load(b.checkpoint(model__model__0__bias=torch.full((8,), NAN))),
         V, "nan at index", "checkpoint"),
    Case("load path", "betas above 1",
         lambda b: df.load(b.checkpoint(schedule__betas=torch.tensor([2.0]).double())),
         V, "betas: got 2.0", "checkpoint"),
    # Plan.from_bytes; the offsets are those of the layout in plan.py
    Case("Plan bytes", "type", lambda b: df.Plan.from_bytes("plan"), Ty, "'plan'", "bytes", "plan"),
    Case("Plan bytes", "empty", lambda b: df.Plan.from_bytes(b""), V, "0 bytes", "80 bytes", "plan"),
    Case("Plan bytes", "truncated", lambda b: df.Plan.from_bytes(b.plan_bytes[:-4]),
         V, r"\d+ bytes", r"\d+ bytes", "plan"),
    Case("Plan bytes", "longer", lambda b: df.Plan.from_bytes(b.plan_bytes + b"\0"),
         V, r"\d+ bytes", r"\d+ bytes", "plan"),
    Case("Plan magic", "another", lambda b: b.patched(0, "8s", b"DFPLAN\n\n"),
         V, r"DFPLAN\\n", r"DFPLAN\\r", r"plan\.magic"),
    Case("Plan version", "1", lambda b: b.patched(8, "I", 1), V, "1", "3", r"plan\.version"),
    Case("Plan dim", "257", lambda b: b.patched(12, "I", 257), V, "257", "1 to 256", r"plan\.dim"),
    Case("Plan n_rows", "2^32 - 1", lambda b: b.patched(16, "I", 2**32 - 1),
         V, "bytes", "n_rows = 4294967295", "plan"),
    Case("Plan n_floats", "2^64 - 1", lambda b: b.patched(48, "Q", 2**64 - 1),
         V, "bytes", "n_floats = 18446744073709551615", "plan"),
    Case("Plan n_tables", "2^32 - 1", lambda b: b.patched(24, "I", 2**32 - 1),
         V, "4294967295", "1048576", r"plan\.n_tables"),
    Case("Plan branches", "3", lambda b: b.patched(44, "I", 3), V, "3", "1 to 2", r"plan\.branches"),
    Case("Plan rows", "NaN", lambda b: b.patched(PLAN_ROWS + 80 + 16, "f", NAN),
         V, "nan", "finite", r"plan\.rows\[1\]\.a"),
    Case("Plan rows", "table out of range", lambda b: b.patched(PLAN_ROWS + 44, "I", T),
         V, "10", "0 to 9", r"plan\.rows\[0\]\.table"),
    Case("Plan rows", "flags", lambda b: b.patched(PLAN_ROWS + 48, "I", 4),
         V, "4", "eval", r"plan\.rows\[0\]\.flags"),
    Case("Plan ops", "kind", lambda b: b.patched(PLAN_OPS, "I", 8),
         V, "8", "linear", r"plan\.ops\[0\]\.kind"),
    Case("Plan ops", "function", lambda b: b.patched(PLAN_OPS + 4, "I", 99),
         V, "99", "0 to 32", r"plan\.ops\[0\]\.function"),
    Case("Plan ops", "reads a later value", lambda b: b.patched(PLAN_OPS + 8, "I", 2),
         V, "2", "earlier", r"plan\.ops\[0\]\.src"),
    Case("Plan ops", "offset beyond the blob", lambda b: b.patched(PLAN_OPS + 32, "q", 2**62),
         V, str(2**62), "inside", r"plan\.ops\[0\]\.weight"),
    Case("Plan ops", "negative offset", lambda b: b.patched(PLAN_OPS + 32, "q", -2),
         V, "-2", "offset", r"plan\.ops\[0\]\.weight"),
    Case("Plan blob", "NaN", lambda b: b.patched(PLAN_BLOB, "f", NAN),
         V, "NaN", "finite", r"plan\.ops\[\d\]\.\w+"),
]
# fmt: on


def split_message(message: str) -> tuple[str, str, str]:
    """ "argument: got GIVEN; accepted: WHAT" in its three parts."""
    name, colon, rest = message.partition(": ")
    given, semicolon, accepted = rest.rpartition("; accepted")
    assert colon and semicolon, f"not of the form 'argument: got ...; accepted: ...': {message}"
    return name, given, accepted


def check_refusal(case: Case, bench: Any) -> None:
    """The case's error with its message, and nothing of the bench changed."""
    with pytest.raises(case.error) as caught:
        case.call(bench)
    name, given, accepted = split_message(str(caught.value))
    assert re.fullmatch(case.name or case.argument.split()[-1], name), caught.value
    assert re.search(case.given, given), caught.value
    assert re.search(case.accepted, accepted), caught.value
    assert bench.state() == bench.before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad_input")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:Sparse .* beta state:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=[f"{case.argument}: {case.fault}" for case in CASES])
def test_bad_input(case: Case, folder: Path) -> None:
    bench = Bench(folder)
    check_refusal(case, bench)
    assert all((out == 7).all() for out in bench.outputs)


def test_the_table_is_long_enough_and_without_repetition() -> None:
    pairs = {(case.argument, case.fault) for case in CASES}
    assert len(pairs) == len(CASES) >= 80
    assert all(case.given and case.accepted for case in CASES)  # an empty pattern is found in any message
