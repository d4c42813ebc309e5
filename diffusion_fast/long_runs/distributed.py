"""The processes of one run: this one alone, or the ranks that torchrun, or whatever sets RANK, started.

They share the key-value store of torch.distributed's rendezvous, the same that gloo and nccl begin with.
torchrun keeps it when it starts all ranks again, with fewer or more of them or after a failure, and not every
such start has a number of its own in the environment. So rank 0 gives each start of a run a name, under which
its keys are, and tells it to each rank that asks with a word that nobody used before.

chunks are claimed one after the other, so a slow rank holds nobody up, and reported to rank 0, which keeps
the manifest. Which rank draws a chunk changes no byte. Each rank gives signs of life and says how it ended,
so none waits for one that has failed or is gone.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from torch import distributed

from diffusion_fast import _checks

POLL_SECONDS = 0.02
SIGN_SECONDS = 1.0  # between signs of life, which come whatever a rank is busy with
SILENT_SECONDS = 30.0  # without one a rank is taken for dead
START_SECONDS = 300.0  # in which all ranks must have started


class Alone:
    """The one process of a run."""

    rank = 0
    job: str | None = None
    started_again = False

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nobody waits for the end."""

    def agree(self, state: Any) -> Any:
        return state

    def claims(self, chunks: Sequence[int]) -> Iterator[int]:
        """The chunks, each to one of the threads that ask."""
        return _Locked(chunks)

    def report(self, chunk: int, digest: str) -> None:
        """Nobody else wants to know."""

    def reports(self) -> list[tuple[int, str]]:
        return []

    def check(self) -> None:
        """Nobody else can fail."""


class _Locked:
    """An iterator that several threads may draw from."""

    def __init__(self, values: Iterable[int]) -> None:
        self._values, self._lock = iter(values), threading.Lock()

    def __iter__(self) -> _Locked:
        return self

    def __next__(self) -> int:
        with self._lock:
            return next(self._values)


def _torchrun_has_store() -> bool:
    """Else rank 0 has it, and it ends with the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@contextmanager
def _reaching() -> Iterator[None]:
    """The store is gone with the process that had it."""
    try:
        yield
    except distributed.DistError as error:
        gone = "the store of the ranks is gone, with torchrun"
        why = gone if _torchrun_has_store() else "rank 0 has ended before the run"
        raise ConnectionAbortedError(errno.ECONNABORTED, why) from error


class Ranks:
    """This process among `world` of them. A with block, at whose end, if it is a good one, all ranks are.

    store: of this run and of each time that it was started before. Of rank 0, job: the same each time, and
    started_again: whether this is not the first.
    """

    def __init__(self, store: distributed.Store, rank: int, world: int) -> None:
        self.rank = rank
        self.job: str | None = None
        self.started_again = False
        self._meeting = store
        self._name = uuid.uuid4().hex  # of this start, if this is rank 0
        self._store = distributed.PrefixStore(self._name, store)
        self._watched = [0] if rank else list(range(1, world))  # by rank 0 all, and rank 0 by all
        self._reported = 0
        self._seen = dict.fromkeys(range(1, world), 0)  # reports that rank 0 has read, of each other
        self._heard: dict[int, tuple[int, float]] = {}  # the last sign of each, and when it was new
        self._next_check = 0.0
        self._over = threading.Event()

    # ---- the beginning and the end

    @_reaching()
    def __enter__(self) -> Ranks:
        if self.rank == 0:
            self._find_job()
        else:
            self._store = distributed.PrefixStore(self._ask_name(), self._meeting)
        if self._store.add(f"{self.rank}/came", 1) > 1:  # started again by itself: its reports would be lost
            why = f"rank {self.rank} has been in this run before; all ranks must be started again"
            raise ConnectionAbortedError(errno.ECONNABORTED, why)
        threading.Thread(target=self._give_signs, name="diffusion_fast signs", daemon=True).start()
        return self

    def _find_job(self) -> None:
        if _torchrun_has_store():
            self.job = self._meeting.compare_set("job", "", self._name).decode()
            self.started_again = self.job != self._name
        else:
            self.job = os.environ.get("TORCHELASTIC_RUN_ID", "")[:100]
            self.started_again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"

    def _ask_name(self) -> str:
        word, until = uuid.uuid4().hex, time.monotonic() + START_SECONDS
        self._meeting.set(f"{self.rank}/asks", word)
        while not self._meeting.check([word]):
            if time.monotonic() > until:
                why = f"rank 0 has not come within {START_SECONDS:g} seconds"
                raise TimeoutError(errno.ETIMEDOUT, why)
            time.sleep(POLL_SECONDS)
        return self._meeting.get(word).decode()

    def _tell_name(self) -> bool:
        """Rank 0's: whether all others have it."""
        for rank in self._watched:
            if self._meeting.check([key := f"{rank}/asks"]):  # perhaps of before: that rank asks again
                self._meeting.set(self._meeting.get(key).decode(), self._name)
        return all(self._store.check([f"{rank}/came"]) for rank in self._watched)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                told = " ".join(str(error).split()) or type(error).__name__
                with suppress(ConnectionAbortedError):
                    self._end(told)
            elif self.rank == 0:
                self._end("")
                with suppress(ConnectionAbortedError, TimeoutError):  # it is complete without them
                    self._wait_for_watched()  # who read that in the store, which may end with this process
            else:
                self._wait_for_watched()
                self._end("")
        finally:
            self._over.set()

    @_reaching()
    def _end(self, told: str) -> None:
        self._store.set(f"{self.rank}/end", told)

    @_reaching()
    def _wait_for_watched(self) -> None:
        while not all(self._store.check([f"{rank}/end"]) for rank in self._watched):
            self.check()
            time.sleep(POLL_SECONDS)
        self._next_check = 0.0
        self.check()

    def _give_signs(self) -> None:
        with suppress(distributed.DistError):  # the thread that draws notices too
            wait = 0.0
            while not self._over.wait(wait):
                self._store.add(f"{self.rank}/signs", 1)
                wait = SIGN_SECONDS if self.rank or self._tell_name() else POLL_SECONDS

    def check(self) -> None:
        """Raises OSError for a rank that has failed or gives no sign of life: all end then. Once a second."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + SIGN_SECONDS
        with _reaching():
            for rank in self._watched:
                self._check_rank(rank, now)

    def _check_rank(self, rank: int, now: float) -> None:
        if self._store.check([f"{rank}/end"]):
            told = self._store.get(f"{rank}/end").decode()
            if told:
                raise ConnectionAbortedError(errno.ECONNABORTED, f"rank {rank} failed: {told}")
            return
        sign = self._store.add(f"{rank}/signs", 0)
        before, since = self._heard.get(rank, (-1, now))
        if sign != before:
            self._heard[rank] = sign, now
            return
        came = self._store.check([f"{rank}/came"])  # else it is still importing
        limit = SILENT_SECONDS if came else START_SECONDS
        if now - since > limit:
            why = f"rank {rank} has given no sign of life for {limit:g} seconds"
            raise TimeoutError(errno.ETIMEDOUT, why)

    # ---- the run

    @_reaching()
    def agree(self, state: Any) -> Any:
        """Rank 0's state, in every rank."""
        if self.rank == 0:
            self._store.set("state", json.dumps(state))
            return state
        while not self._store.check(["state"]):  # wait() would keep signals waiting too
            self.check()
            time.sleep(POLL_SECONDS)
        return json.loads(self._store.get("state"))

    def claims(self, chunks: Sequence[int]) -> Iterator[int]:
        """Chunks that no other rank or thread has claimed; none once rank 0 has failed."""
        return _Locked(self._claimed(chunks))

    @_reaching()
    def _claim(self) -> int:
        self.check()
        return self._store.add("claimed", 1) - 1

    def _claimed(self, chunks: Sequence[int]) -> Iterator[int]:
        while (place := self._claim()) < len(chunks):
            yield chunks[place]

    @_reaching()
    def report(self, chunk: int, digest: str) -> None:
        self._store.set(f"{self.rank}/{self._reported}", json.dumps([chunk, digest]))
        self._reported += 1

    @_reaching()
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


def launched() -> tuple[int, int]:
    """(rank, number of ranks) of this process: of torch.distributed, where it is initialised, else as the
    environment says. Raises ValueError naming the variable."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return 0, 1
    world = _of_environment("WORLD_SIZE", 1, None, "the number of ranks, as RANK is set")
    if world == 1 and "RANK" not in os.environ:
        return 0, 1
    ranks = f"WORLD_SIZE is {world}"
    rank = _of_environment("RANK", 0, world - 1, f"0 to {world - 1}, as {ranks}")
    if world > 1:
        if not os.environ.get("MASTER_ADDR"):
            raise ValueError(f"MASTER_ADDR: not given; accepted: where rank 0 is reached, as {ranks}")
        _of_environment("MASTER_PORT", 1, (1 << 16) - 1, f"the port of rank 0, as {ranks}")
    return rank, world


def _of_environment(name: str, low: int, high: int | None, accepted: str) -> int:
    text = os.environ.get(name, "")
    if not text:
        raise ValueError(f"{name}: not given; accepted: {accepted}")
    if not text.isascii() or not text.isdigit():
        raise _checks.bad_value(name, text, accepted)
    return _checks.integer(name, int(text), low, high)


_runs = itertools.count()  # of this process: every rank makes the same calls in the same order


def peers() -> Alone | Ranks:
    """The processes that torchrun, or whatever sets RANK and WORLD_SIZE, started together with this one."""
    rank, world = launched()
    if world == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # by which one rank is started again too
        return Alone()
    return Ranks(distributed.PrefixStore(f"diffusion_fast/{next(_runs)}", _rendezvous()), rank, world)


@functools.cache
def _rendezvous() -> distributed.Store:
    if distributed.is_initialized():  # its server may be this process, and is not made twice
        return distributed.distributed_c10d._get_default_store()
    met: Future[distributed.Store] = Future()

    def meet() -> None:
        try:
            given = distributed.rendezvous("env://", timeout=timedelta(seconds=START_SECONDS))
            met.set_result(next(iter(given))[0])
        except BaseException as error:
            met.set_exception(error)

    # in a thread, for it keeps signals waiting until all ranks are there
    threading.Thread(target=meet, name="diffusion_fast rendezvous", daemon=True).start()
    while not met.done():
        time.sleep(POLL_SECONDS)
    try:
        return met.result()
    except distributed.DistError as error:
        why = f"not all ranks have started and met at MASTER_ADDR within {START_SECONDS:g} seconds"
        raise TimeoutError(errno.ETIMEDOUT, why) from error
