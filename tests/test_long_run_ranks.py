"""Ranks in one process: how they meet, how they know of each other, and what it is to be started again."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cli_bench
import numpy as np
import pytest
import torch
from test_long_runs import CHUNK, N, Stopped, stopped_after

import diffusion_fast as df
from diffusion_fast.long_runs import distributed, run
from diffusion_fast.long_runs.distributed import Alone, Ranks


@contextmanager
def met(store: torch.distributed.Store) -> Iterator[list[Ranks]]:
    """Two ranks that have met, and fail at the end of the block."""
    with suppress(Stopped), Ranks(store, 0, 2) as first, Ranks(store, 1, 2) as second:
        yield [first, second]
        raise Stopped("enough")


def test_a_rank_that_is_started_again_by_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would report its chunks anew, to a rank 0 that has read past them."""
    monkeypatch.setattr(distributed, "SIGN_SECONDS", 0.05)
    store = torch.distributed.HashStore()
    with suppress(Stopped), Ranks(store, 0, 2) as first:
        with suppress(Stopped), Ranks(store, 1, 2):
            raise Stopped("enough")
        with (
            pytest.raises(ConnectionAbortedError, match="rank 1 has been in this run before"),
            Ranks(store, 1, 2),
        ):
            pass
        with pytest.raises(ConnectionAbortedError, match="rank 1 failed: "):
            first.check()
        raise Stopped


def test_ranks_that_are_started_again_find_nothing_of_before() -> None:
    """With the store that they had, and whichever comes first."""
    store = torch.distributed.HashStore()
    with met(store) as (first, second):
        first.agree("old")
        assert second.agree(None) == "old"
        assert list(itertools.islice(second.claims([5, 6, 7]), 2)) == [5, 6]
        second.report(5, "old")
    found: list[Any] = []

    def comes_first() -> None:
        with Ranks(store, 1, 2) as second:
            found.append(second.agree(None))
            found.extend(second.claims([5, 6, 7]))
            for chunk in (5, 6):
                second.report(chunk, "new")

    thread = threading.Thread(target=comes_first)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive() and not found  # it asks for the name of this start
    with Ranks(store, 0, 2) as first:
        assert first.reports() == []
        first.agree("new")
        thread.join(0.2)
        reports = []
        while len(reports) < 2:
            reports += first.reports()
            first.check()
    thread.join()
    assert found == ["new", 5, 6, 7] and reports == [(5, "new"), (6, "new")]


def started(
    monkeypatch: pytest.MonkeyPatch, store: torch.distributed.Store, **environment: Any
) -> list[tuple[str | None, bool]]:
    """What rank 0 of a start by torchrun knows of its job, in the two runs of its process."""
    found = []
    with monkeypatch.context() as patch:
        for name, value in {"RANK": 0, "WORLD_SIZE": 1, "TORCHELASTIC_RUN_ID": "none", **environment}.items():
            patch.setenv(name, str(value))
        patch.setattr(distributed, "_rendezvous", lambda: store)
        patch.setattr(distributed, "_runs", itertools.count())
        for _ in range(2):
            with distributed.peers() as ranks:
                found.append((ranks.job, ranks.started_again))
    return found


def test_a_job_is_known_by_the_store_that_outlives_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TORCHELASTIC_RESTART_COUNT says, which stays 0 where a node has come or gone."""
    store, environment = torch.distributed.HashStore(), {"TORCHELASTIC_USE_AGENT_STORE": True}
    first = started(monkeypatch, store, **environment)
    assert started(monkeypatch, store, **environment) == [(job, True) for job, _ in first]
    other = started(monkeypatch, torch.distributed.HashStore(), **environment)
    assert [again for _, again in first + other] == [False] * 4
    assert len({job for job, _ in first + other}) == 4


def test_a_job_is_known_by_its_restarts_where_each_has_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1):
        found = started(monkeypatch, torch.distributed.HashStore(), TORCHELASTIC_RESTART_COUNT=count)
        assert found == [("none", count > 0)] * 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_job_that_is_started_again_goes_on(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Whatever it is told to do with an output that was there before."""
    path = tmp_path / "x.npy"

    def drawn_by(job: str) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(run, "peers", type("Rank", (Alone,), {"job": job, "started_again": True}))
            return df.sample_to(path, sampler, N, chunk_size=CHUNK, overwrite=overwrite).drawn

    with stopped_after(3):
        drawn_by("a")
    assert drawn_by("a") == N - 3 * CHUNK
    assert drawn_by("a") == 0 and np.array_equal(np.load(path), sampler.sample(N).numpy())
    if overwrite:
        assert drawn_by("b") == N
    else:
        with pytest.raises(ValueError, match="which exists"):
            drawn_by("b")


def test_a_rank_that_has_not_come_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be importing, or making its table; once it has come, its signs must."""
    ranks = Ranks(torch.distributed.HashStore(), 0, 2)
    store = ranks._store
    clock = [0.0]
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])

    def check_at(seconds: float) -> None:
        clock[0] = seconds
        ranks.check()

    check_at(0.0)
    check_at(distributed.START_SECONDS - 1)
    with pytest.raises(TimeoutError, match=f"rank 1 .* for {distributed.START_SECONDS:g} seconds"):
        check_at(distributed.START_SECONDS + 2)
    store.add("1/came", 1)
    with pytest.raises(TimeoutError, match=f"rank 1 .* for {distributed.SILENT_SECONDS:g} seconds"):
        check_at(distributed.START_SECONDS + 4)
    store.add("1/signs", 1)
    check_at(1000.0)
    check_at(1000.0 + distributed.SILENT_SECONDS - 1)
    with pytest.raises(TimeoutError, match=f"for {distributed.SILENT_SECONDS:g} seconds"):
        check_at(1000.0 + distributed.SILENT_SECONDS + 2)


@pytest.mark.parametrize(("of_torchrun", "line"), [("True", "gone, with torchrun"), ("False", "rank 0 has")])
def test_who_has_the_store_is_who_is_gone(
    monkeypatch: pytest.MonkeyPatch, of_torchrun: str, line: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", of_torchrun)
    server = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ranks = Ranks(torch.distributed.TCPStore("localhost", server.port), 0 if of_torchrun == "True" else 1, 2)
    del server
    with pytest.raises(ConnectionAbortedError, match=line):
        next(ranks.claims([0]))


# ---- what a launcher says

ENVIRONMENTS: dict[str, tuple[dict[str, str], str]] = {
    "text": (
        {"WORLD_SIZE": "abc", "RANK": "0"},
        r"WORLD_SIZE: got 'abc' \(str\); accepted: the number of ranks",
    ),
    "none": ({"WORLD_SIZE": "0", "RANK": "0"}, r"WORLD_SIZE: got 0 \(int\); accepted: an integer from 1 up"),
    "no size": ({"RANK": "1"}, r"WORLD_SIZE: not given; accepted: the number of ranks"),
    "no rank": ({"WORLD_SIZE": "2"}, r"RANK: not given; accepted: 0 to 1, as WORLD_SIZE is 2"),
    "beyond": ({"WORLD_SIZE": "2", "RANK": "2"}, r"RANK: got 2 \(int\); accepted: an integer from 0 to 1"),
    "negative": ({"WORLD_SIZE": "2", "RANK": "-1"}, r"RANK: got '-1' \(str\); accepted: 0 to 1"),
    "no address": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, r"MASTER_ADDR: not given; accepted"),
    "no port": ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}, r"MASTER_PORT: not given; accepted"),
    "no such port": (
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "65536"},
        r"MASTER_PORT: got 65536 \(int\); accepted: an integer from 1 to 65535",
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_launcher_that_says_half_of_it(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One line that names the variable, and the code of bad input, before anything is written."""
    given, line = ENVIRONMENTS[name]
    for variable in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    df.save(tmp_path / "net", sampler.model, sampler.schedule)
    result = cli_bench.run(tmp_path, "sample", "net", "--num-samples", "10", "--out", "x.npy")
    assert (result.exit_code, result.stdout) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert re.fullmatch(rf"error: {line}.*\n", result.stderr), result.stderr


def test_one_rank_of_one_needs_no_meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.launched() == (0, 1)
    monkeypatch.setenv("RANK", "0")
    assert distributed.launched() == (0, 1)
