"""Checkpoints: what comes back, that writing is all or nothing, and what hostile or damaged files get."""

from __future__ import annotations

import ast
import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import diffusion_fast as df
from diffusion_fast.checkpoint import load, save
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.standardiser import Standardiser

SCHEDULE = NoiseSchedule.linear(10, 1e-4, 0.2)
STANDARDISER = Standardiser([1.0, -2.0], [3.0, 1 / 3])


def make_model(**options: Any) -> MLPDenoiser:
    return MLPDenoiser(**{"dim": 2, "hidden": (8, 6), "n_steps": 12, "time_dim": 4, **options})


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    save(path, make_model(), SCHEDULE, STANDARDISER)
    return path


# ---- what comes back ----


@pytest.mark.parametrize("embedding", ["learned", "sinusoidal", "table", "scalar"])
@pytest.mark.parametrize("n_classes", [None, 3])
def test_everything_comes_back(tmp_path, embedding, n_classes):
    model = make_model(time_embedding=embedding, n_classes=n_classes)
    notes = {"prediction_type": "epsilon", "losses": [1.5, 0.25], "nested": {"a": None}}
    save(tmp_path / "x.safetensors", model, SCHEDULE, STANDARDISER, metadata=notes)
    back = load(tmp_path / "x.safetensors")
    x, t = torch.randn(7, 2), torch.arange(7)
    assert torch.equal(back.model(x, t), model(x, t))
    assert back.model.config == model.config
    assert not back.model.training
    assert torch.equal(back.schedule.betas, SCHEDULE.betas)  # float64, bit for bit
    assert back.schedule.name == SCHEDULE.name
    assert back.standardiser == STANDARDISER
    assert back.metadata == notes


def test_the_sampler_takes_the_prediction_type_of_the_metadata(tmp_path):
    model = make_model().eval()
    save(tmp_path / "x.safetensors", model, SCHEDULE, metadata={"prediction_type": "v_prediction"})
    back = load(tmp_path / "x.safetensors")
    assert torch.equal(
        back.sampler().sample(9), df.Sampler(model, SCHEDULE, prediction_type="v_prediction").sample(9)
    )
    asked = back.sampler(prediction_type="sample").sample(9)  # an option wins
    assert torch.equal(asked, df.Sampler(model, SCHEDULE, prediction_type="sample").sample(9))
    save(tmp_path / "x.safetensors", model, SCHEDULE, metadata={"prediction_type": ["v"]})
    with pytest.raises(ValueError, match=r"^metadata: got the prediction_type \['v'\] .*v_prediction"):
        load(tmp_path / "x.safetensors").sampler()


def test_a_standardiser_is_optional(tmp_path):
    save(str(tmp_path / "x.safetensors"), make_model(), SCHEDULE)
    back = load(str(tmp_path / "x.safetensors"))
    assert back.standardiser is None
    assert back.metadata == {}


def test_an_activation_in_place_is_the_same_one(tmp_path):
    model = make_model(activation="relu")
    model.model[1].inplace = True
    save(tmp_path / "m.safetensors", model, SCHEDULE)
    x, t = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(load(tmp_path / "m.safetensors").model(x, t), model(x, t))


def test_same_content_same_bytes_and_no_random_numbers_used(tmp_path, good):
    back = load(good)
    state = torch.get_rng_state()
    save(tmp_path / "again.safetensors", back.model, back.schedule, back.standardiser)
    load(good)
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "again.safetensors").read_bytes() == good.read_bytes()


# ---- all or nothing ----


def test_a_failed_write_leaves_the_old_file_and_no_other(good, monkeypatch):
    before = good.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                save(good, make_model(dim=3), SCHEDULE)
        assert good.read_bytes() == before
        assert [p.name for p in good.parent.iterdir()] == [good.name]
    save(good, make_model(dim=3), SCHEDULE)
    assert load(good).model.dim == 3


def test_a_link_stays_a_link(tmp_path, good):
    link = tmp_path / "latest"
    link.symlink_to(good.name)
    save(link, make_model(dim=3), SCHEDULE)
    assert link.is_symlink() and load(good).model.dim == 3


def test_save_refuses_before_it_writes(tmp_path):
    path = tmp_path / "x.safetensors"
    broken = make_model()
    with torch.no_grad():
        broken.model[0].bias[2] = math.nan

    other = type("MLPDenoiser", (MLPDenoiser,), {})  # the name alone does not make it ours
    faults: list[tuple[type[Exception], str, tuple]] = [
        (TypeError, r"^model: got .*MLPDenoiser", (nn.Linear(2, 2), SCHEDULE)),
        (TypeError, r"^model: got .*MLPDenoiser", (other(2), SCHEDULE)),
        (TypeError, r"^schedule: got .*NoiseSchedule", (make_model(), [0.1])),
        (TypeError, r"^standardiser: got .*Standardiser", (make_model(), SCHEDULE, 1.0)),
        (ValueError, r"^model.model.0.bias: got nan at index \(2,\)", (broken, SCHEDULE)),
        (ValueError, r"^model\..*float64.*float32", (make_model().double(), SCHEDULE)),
        (ValueError, r"^schedule: got one of 13 .*n_steps", (make_model(), NoiseSchedule.linear(13))),
        (ValueError, r"^standardiser: got .*model.dim = 3", (make_model(dim=3), SCHEDULE, STANDARDISER)),
    ]
    for error, message, arguments in faults:
        with pytest.raises(error, match=message):
            save(path, *arguments)
    for metadata in ({"a": math.nan}, {"a": object()}, [1], {1: 2}):
        with pytest.raises((TypeError, ValueError), match=r"^metadata: got .*JSON"):
            save(path, make_model(), SCHEDULE, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


# ---- hostile and damaged files ----


def edit(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite a good file with its header and tensors changed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["diffusion_fast"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"diffusion_fast": json.dumps(header)})


def set_config(**values: Any) -> Callable[[dict, dict], None]:
    return lambda header, tensors: header["model"]["config"].update(values)


def set_tensor(name: str, value: torch.Tensor) -> Callable[[dict, dict], Any]:
    return lambda header, tensors: tensors.__setitem__(name, value)


EDITS: dict[str, tuple[Callable[[dict, dict], Any], str]] = {
    "version": (lambda h, t: h.update(format_version=2), r"at \$\.format_version: 1 was expected"),
    "no version": (lambda h, t: h.pop("format_version"), "'format_version' is a required property"),
    "no model": (lambda h, t: h.pop("model"), "'model' is a required property"),
    "no schedule": (lambda h, t: h.pop("schedule"), "'schedule' is a required property"),
    "no schedule name": (
        lambda h, t: h["schedule"].clear(),
        r"at \$\.schedule: 'name' is a required property",
    ),
    "metadata a list": (lambda h, t: h.update(metadata=[]), r"at \$\.metadata: \[\] is not of type 'object'"),
    "unknown class": (lambda h, t: h["model"].update({"class": "MLPDenoyser"}), "did you mean 'MLPDenoiser'"),
    "class a list": (
        lambda h, t: h["model"].update({"class": ["os"]}),
        r"at \$\.model\.class: \['os'\] is not of type 'string'",
    ),
    "no config": (lambda h, t: h["model"].pop("config"), "'config' is a required property"),
    "config key": (set_config(depth=3), "depth"),
    "config without dim": (lambda h, t: h["model"]["config"].pop("dim"), "dim"),
    "activation": (set_config(activation="__import__"), "activation: got '__import__'"),
    "another dim": (set_config(dim=3), "model.model.0.weight is F32"),
    "huge widths": (set_config(hidden=[65536] * 64), "unknown tensors|lacks the tensors"),
    "huge dim": (set_config(dim=10**30), "dim: got"),
    "huge classes": (set_config(n_classes=1 << 20, time_dim=65536), "lacks the tensors"),
    "huge table": (set_config(time_embedding="table", n_steps=1 << 20, time_dim=65536), "lacks the tensors"),
    "too many layers": (set_config(hidden=[1] * 65), "hidden: got"),
    "n_steps a float": (set_config(n_steps=1.5), "n_steps: got 1.5"),
    "few n_steps": (set_config(n_steps=9), "schedule: got one of 10 steps; accepted: 1 to 9"),
    "missing weight": (lambda h, t: t.pop("model.model.2.bias"), "lacks the tensors .*model.model.2.bias"),
    "extra tensor": (set_tensor("model.more", torch.zeros(1)), "unknown tensors .*model.more"),
    "shape": (set_tensor("model.model.0.bias", torch.zeros(9)), r"\[9\], not F32 \[8\]"),
    "type": (set_tensor("model.model.0.bias", torch.zeros(8).half()), r"F16 \[8\], not F32"),
    "nan": (set_tensor("model.model.0.bias", torch.full((8,), math.nan)), "model.model.0.bias: got nan"),
    "inf": (set_tensor("model.model.4.bias", torch.tensor([0.0, math.inf])), r"got inf at index \(1,\)"),
    "no betas": (lambda h, t: t.pop("schedule.betas"), "lacks the tensors .*schedule.betas"),
    "empty betas": (set_tensor("schedule.betas", torch.zeros(0).double()), "one of 0 steps"),
    "float32 betas": (set_tensor("schedule.betas", SCHEDULE.betas.float()), "F32 .* not F64"),
    "scalar betas": (set_tensor("schedule.betas", torch.tensor(0.1).double()), "schedule.betas is F64"),
    "matrix betas": (set_tensor("schedule.betas", torch.full((2, 2), 0.1).double()), "schedule.betas is F64"),
    "zero beta": (set_tensor("schedule.betas", torch.tensor([0.0, 0.1]).double()), "schedule.betas: got 0.0"),
    "beta above 1": (set_tensor("schedule.betas", torch.tensor([0.5, 1.1]).double()), "betas"),
    "nan beta": (set_tensor("schedule.betas", torch.tensor([math.nan]).double()), "schedule.betas: got nan"),
    "no std": (lambda h, t: t.pop("standardiser.std"), "lacks the tensors .*standardiser.std"),
    "zero std": (set_tensor("standardiser.std", torch.tensor([1.0, 0.0]).double()), "std"),
    "wide std": (set_tensor("standardiser.std", torch.ones(3).double()), r"\[3\], not F64 \[2\]"),
}


@pytest.mark.parametrize("name", list(EDITS))
def test_a_changed_file_is_refused_with_the_reason(good, name):
    change, reason = EDITS[name]
    edit(good, lambda header, tensors: None)
    load(good)  # rewriting alone does no harm
    edit(good, change)
    with pytest.raises(ValueError, match=reason) as caught:
        load(good)
    message = str(caught.value)
    assert message.startswith(f"path: got '{good}'")
    assert "accepted: a checkpoint" in message


def raw(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


OTHER_FILES = {
    "empty": b"",
    "text": b"not a checkpoint at all",
    "pickle": pickle.dumps({"weights": [1.0]}),
    "endless header": raw(b"{}", 1 << 62),
    "header not JSON": raw(b"{{{{"),
    "no entry": raw(b'{"__metadata__":{"other":"1"}}'),
    "entry not JSON": raw(b'{"__metadata__":{"diffusion_fast":"}"}}'),
    "entry a list": raw(b'{"__metadata__":{"diffusion_fast":"[]"}}'),
    "large entry": raw(json.dumps({"__metadata__": {"diffusion_fast": " " * (1 << 24) + "{}"}}).encode()),
    "NaN entry": raw(b'{"__metadata__":{"diffusion_fast":"NaN"}}'),
    "deep entry": raw(json.dumps({"__metadata__": {"diffusion_fast": "[" * 100_000}}).encode()),
    "offsets outside": raw(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
}


@pytest.mark.parametrize("name", list(OTHER_FILES))
def test_other_files_are_refused(tmp_path, name):
    path = tmp_path / "x.safetensors"
    path.write_bytes(OTHER_FILES[name])
    with pytest.raises(ValueError, match=r"^path: got .*accepted: a checkpoint"):
        load(path)


def test_a_file_cut_anywhere_is_refused(good):
    content = good.read_bytes()
    for length in [*range(0, 64, 7), *range(64, len(content), 97), len(content) - 1]:
        good.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"^path: got"):
            load(good)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_changed_byte_loads_finite_weights_or_is_refused(good, position, byte):
    content = bytearray(good.read_bytes())
    content[int(position * len(content))] = byte
    path = good.with_name("changed.safetensors")
    path.write_bytes(content)
    try:
        back = load(path)
    except ValueError as error:
        assert str(error).startswith("path: got")
    else:
        assert all(bool(torch.isfinite(p).all()) for p in back.model.parameters())


def test_a_missing_file_is_a_missing_file(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"^path: got"):
            load(path)


def test_nothing_in_the_package_unpickles() -> None:
    """A file must not be able to run code, whoever wrote it."""
    for path in Path(df.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            )
            assert not {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} & set(names), path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "torch.jit.load", "eval", "exec", "pickle.loads"), path
            if called in ("np.load", "np.lib.format.read_array"):
                allowed = {word.arg: ast.unparse(word.value) for word in node.keywords}  # type: ignore[attr-defined]
                assert allowed.get("allow_pickle", "False") == "False", path
