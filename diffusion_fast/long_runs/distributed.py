"""The processes of one run: this one alone, or the ranks that torchrun started.

They share the key-value store of torch.distributed's rendezvous, the same that gloo and nccl begin with:
chunks are claimed one after the other, so a slow rank holds nobody up, and reported to rank 0, which keeps
the manifest. Which rank draws a chunk changes no byte.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import distributed

POLL_SECONDS = 0.02


class Alone:
    """The one process of a run."""

    rank = 0

    def agree(self, state: Any) -> Any:
        return state

    def claims(self, chunks: Sequence[int]) -> Iterator[int]:
        """The chunks, each to one of the threads that ask."""
        return _Locked(chunks)

    def report(self, chunk: int, digest: str) -> None:
        """Nobody else wants to know."""

    def reports(self) -> list[tuple[int, str]]:
        return []


class _Locked:
    """An iterator that several threads may draw from."""

    def __init__(self, values: Iterable[int]) -> None:
        self._values, self._lock = iter(values), threading.Lock()

    def __iter__(self) -> _Locked:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._values)


class Ranks:
    """This process among `world` of them."""

    def __init__(self, store: distributed.Store, rank: int, world: int) -> None:
        self.rank = rank
        self._store = store
        self._reported = 0
        self._seen = dict.fromkeys(set(range(world)) - {rank}, 0)  # reports read, of each other rank

    def agree(self, state: Any) -> Any:
        """Rank 0's state, in every rank."""
        if self.rank == 0:
            self._store.set("state", json.dumps(state))
            return state
        while not self._store.check(["state"]):  # wait() would keep signals waiting too
            time.sleep(POLL_SECONDS)
        return json.loads(self._store.get("state"))

    def claims(self, chunks: Sequence[int]) -> Iterator[int]:
        """Chunks that no other rank or thread has claimed."""
        return _Locked(self._claimed(chunks))

    def _claimed(self, chunks: Sequence[int]) -> Iterator[int]:
        while (place := self._store.add("claimed", 1) - 1) < len(chunks):
            yield chunks[place]

    def report(self, chunk: int, digest: str) -> None:
        self._store.set(f"{self.rank}/{self._reported}", json.dumps([chunk, digest]))
        self._reported += 1

    def reports(self) -> list[tuple[int, str]]:
        """What the other ranks have reported since the last call."""
        found = []
        for rank in self._seen:
            while self._store.check([key := f"{rank}/{self._seen[rank]}"]):
                chunk, digest = json.loads(self._store.get(key))
                found.append((chunk, digest))
                self._store.delete_key(key)
                self._seen[rank] += 1
        return found


_runs = itertools.count()  # of this process: every rank makes the same calls in the same order


def peers() -> Alone | Ranks:
    """The processes that torchrun, or whatever sets RANK and WORLD_SIZE, started together with this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Alone()
    store, rank = _rendezvous()
    return Ranks(distributed.PrefixStore(f"diffusion_fast/{next(_runs)}", store), rank, world)


@functools.cache
def _rendezvous() -> tuple[distributed.Store, int]:
    if distributed.is_initialized():  # its server may be this process, and is not made twice
        return distributed.distributed_c10d._get_default_store(), distributed.get_rank()
    store, rank, _ = next(iter(distributed.rendezvous("env://")))
    return store, rank
