"""What bad arguments of sample_to and verify get, by (argument, fault) as in test_bad_input.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_bad_cli
import test_bad_data
import test_bad_input
import test_bad_metrics
import test_bad_plotting
import torch
from bad_input import SCHEDULE, Bench, Case, Ty, V, net
from test_bad_input import check_refusal

import diffusion_fast as df

COLUMNS = df.Columns(["a", "b"], "kind", ["p", "q", "r"])


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.1 * x


def with_axes(count: int) -> df.Sampler:
    return df.Sampler(Scaled().eval(), SCHEDULE, shape=(1,) * count, backend="torch")


class Runs(Bench):
    """Finished runs of 10 samples, good.npy, good.csv and kinds.csv, beside the arguments of Bench."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name, sampler, labels in (
            ("good.npy", self.sampler, None),
            ("good.csv", self.sampler, None),
            ("kinds.csv", self.by_class, 0),
        ):
            df.sample_to(folder / name, sampler, 10, labels=labels, overwrite=True)
        (folder / "folder.npy").mkdir(exist_ok=True)
        self.before = self.state()

    def state(self) -> list[Any]:
        files = [(path.name, path.read_bytes()) for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return [files]

    def to(self, name: Any = "new.npy", n: Any = 4, sampler: Any = None, **options: Any) -> Any:
        path = f"{self.folder}/{name}" if isinstance(name, str) else name
        return df.sample_to(path, self.sampler if sampler is None else sampler, n, **options)

    def verify(self, name: str = "good.npy", **options: Any) -> Any:
        return df.verify(f"{self.folder}/{name}", **options)

    def manifest(self, text: str, **options: Any) -> Any:
        path = self.folder / "spoilt.npy.manifest.json"
        path.write_text(text)
        self.before = self.state()
        return self.to("spoilt.npy", **options) if options else self.verify("spoilt.npy")


# fmt: off
CASES = [
    Case("sample_to path", "type", lambda b: b.to(3), Ty, "3", "a path"),
    Case("sample_to path", "unknown suffix", lambda b: b.to("new.txt"), V, "new.txt",
         r"\.npy, \.npz.*folder"),
    Case("sample_to path", "no suffix", lambda b: b.to("new"), V, "new'", r"\.npy"),
    Case("sample_to path", "exists", lambda b: b.to("good.npy"), V, "which exists", "overwrite=True"),
    Case("sample_to path", "exists, resumed without a manifest", lambda b: b.to("good", resume=True), V,
         "good'",
         r"\.npy"),
    Case("sample_to path", "a folder without its /", lambda b: b.to("folder.npy"), V, "no regular file",
         "folder"),
    Case("sample_to path", "a file with a /", lambda b: b.to("good.npy/"), V, "which is no folder",
         "new folder"),
    Case("sample_to path", "missing folder", lambda b: b.to("no/new.npy"), V, "whose folder does not exist",
         "exists"),
    Case("sample_to path", "missing folder of a folder", lambda b: b.to("no/new/"), V, "does not exist",
         "exists"),
    Case("sample_to path", "name too long for a manifest", lambda b: b.to(f"{'n' * 230}.npy"), V,
         "cannot be written", "written"),
    Case("sample_to path", "name of a folder too long for a manifest", lambda b: b.to(f"{'n' * 234}/"), V,
         "cannot be made", "can be written"),
    Case("sample_to path", "folder that refuses", lambda b: df.sample_to("/proc/new.npy", b.sampler, 4), V,
         "cannot be written", "can be written"),
    Case("sample_to path", "folder in one that refuses", lambda b: df.sample_to("/proc/new/", b.sampler, 4),
         V,
         "cannot be made", "can be written"),
    Case("sample_to path", "name too long", lambda b: b.to(f"{'n' * 252}.npy"), V, "cannot be written",
         "written"),
    Case("sample_to path", "bytes", lambda b: b.to(b"new.npy"), Ty, "b'new.npy'", "a path"),
    Case("sample_to path", "null character", lambda b: b.to("a\0b.npy"), V, "null character", "a file name"),
    Case("sample_to path", "null character in a folder", lambda b: b.to("a\0b/"), V, "null character",
         "a new folder"),
    Case("sample_to manifest", "unusable, resumed", lambda b: b.manifest("[]", resume=True), V,
         "not of type 'object'", "or overwrite=True to begin again"),
    Case("sample_to path", "two columns of a name",
         lambda b: b.to("new.csv", sampler=b.by_class, labels=0, columns=df.Columns(["a", "b"], "a",
         list("pqr"))),
         V, "two columns named 'a'", r"\.npy"),
    Case("sample_to path", "name of another array",
         lambda b: b.to("new.npz", sampler=b.by_class, labels=0, columns=df.Columns(["a", "b"], "x",
         list("pqr"))),
         V, "'x', has the name", r"\.csv"),
    Case("sample_to path", "more than the disk", lambda b: b.to(n=1 << 46), V, "bytes where",
         "fewer samples"),
    Case("sample_to sampler", "type", lambda b: b.to(sampler=b.model), Ty, "MLPDenoiser", "a Sampler"),
    Case("sample_to sampler", "none of them", lambda b: b.to(sampler=[]), Ty, r"\[\]", "a Sampler"),
    Case("sample_to sampler", "one is none", lambda b: b.to(sampler=[b.sampler, 3]), Ty, "list", "a Sampler"),
    Case("sample_to sampler", "two that differ",
         lambda b: b.to(sampler=[b.sampler, df.Sampler(b.model, SCHEDULE, solver="ddim")]), V, "differ",
         "one model"),
    Case("sample_to n", "zero", lambda b: b.to(n=0), V, "0", "from 1"),
    Case("sample_to n", "negative", lambda b: b.to(n=-1), V, "-1", "from 1"),
    Case("sample_to n", "float", lambda b: b.to(n=4.0), Ty, "4.0", "integer"),
    Case("sample_to n", "bool", lambda b: b.to(n=True), Ty, "True", "integer"),
    Case("sample_to n", "above 2^48", lambda b: b.to(n=2**48 + 1), V, str(2**48 + 1), str(2**48)),
    Case("sample_to start", "negative", lambda b: b.to(start=-1), V, "-1", "from 0"),
    Case("sample_to start", "start + n above 2^48", lambda b: b.to(start=2**48 - 3), V, str(2**48 - 3),
         r"2\^48"),
    Case("sample_to seed", "negative", lambda b: b.to(seed=-1), V, "-1", "from 0"),
    Case("sample_to seed", "2^64", lambda b: b.to(seed=2**64), V, str(2**64), "from 0"),
    Case("sample_to seed", "a generator", lambda b: b.to(seed=b.generator), Ty, "Generator", "integer"),
    Case("sample_to labels", "without classes", lambda b: b.to(labels=1), V, "1", "None"),
    Case("sample_to labels", "too large", lambda b: b.to(sampler=b.by_class, labels=4), V, "4", "0 to 3"),
    Case("sample_to labels", "one too large", lambda b: b.to(sampler=b.by_class, labels=[0, 9]), V, "9",
         "0 to 3"),
    Case("sample_to labels", "none of them", lambda b: b.to(sampler=b.by_class, labels=[]), V, r"\[\]",
         "one"),
    Case("sample_to labels", "floats", lambda b: b.to(sampler=b.by_class, labels=[0.5]), Ty, "0.5", "0 to 3"),
    Case("sample_to labels", "rank", lambda b: b.to(sampler=b.by_class, labels=np.zeros((2, 2), int)), V,
         r"\(2, 2\)", "0 to 3"),
    Case("sample_to labels", "string", lambda b: b.to(sampler=b.by_class, labels="p"), Ty, "'p'", "0 to 3"),
    Case("sample_to labels", "none with guidance", lambda b: b.to(sampler=b.guided), V, "None", "0 to 3"),
    Case("sample_to context", "without need", lambda b: b.to(context=torch.ones(2)), V, "tensor", "None"),
    Case("sample_to columns", "type", lambda b: b.to("new.csv", columns=["a", "b"]), Ty, "'a'", "Columns"),
    Case("sample_to names", "too few", lambda b: b.to("new.csv", columns=df.Columns(["a"])), V, "'a'",
         "2 strings",
         r"columns\.names"),
    Case("sample_to classes", "too many", lambda b: b.to("new.csv", columns=COLUMNS), V, "'p'", "0 strings",
         r"columns\.classes"),
    Case("sample_to resume", "int", lambda b: b.to(resume=1), Ty, "1", "True or False"),
    Case("sample_to resume", "another seed", lambda b: b.to("good.npy", n=10, seed=1, resume=True), V,
         "another seed, 1", "0, with which good"),
    Case("sample_to resume", "another number", lambda b: b.to("good.npy", n=11, resume=True), V,
         r"another index range, \[0, 11\]", r"\[0, 10\]"),
    Case("sample_to overwrite", "string", lambda b: b.to(overwrite="yes"), Ty, "'yes'", "True or False"),
    Case("sample_to overwrite", "with resume", lambda b: b.to(overwrite=True, resume=True), V, "True",
         "False with resume"),
    Case("sample_to progress", "string", lambda b: b.to(progress="yes"), Ty, "'yes'", "True or False"),
    Case("sample_to chunk_size", "zero", lambda b: b.to(chunk_size=0), V, "0", "from 1"),
    Case("sample_to chunk_size", "float", lambda b: b.to(chunk_size=1.5), Ty, "1.5", "integer"),
    Case("sample_to chunk_size", "too many chunks", lambda b: b.to(n=1 << 30, chunk_size=1000), V, "1000",
         "from 4096"),
    Case("sample_to made_by", "no JSON", lambda b: b.to(made_by={"a": {1}}), Ty, r"\{1\}", "JSON values"),
    Case("sample_to made_by", "type", lambda b: b.to(made_by=[1]), Ty, r"\[1\]", "a dictionary"),
    Case("sample_to made_by", "larger than a manifest", lambda b: b.to(made_by={"a": "x" * (1 << 25)}), V,
         "bytes", "at most 33554"),
    Case("sample_to sampler", "17 axes", lambda b: b.to(sampler=with_axes(17)), V,
         r"\$\.run\.shape.*too long", "at most 16 axes"),
    Case("sample_to sampler", "17 axes, in place of a run",
         lambda b: b.to("good.npy", sampler=with_axes(17), overwrite=True), V, "too long", "16 axes"),
    Case("sample_to columns", "others, resumed",
         lambda b: b.to("good.csv", n=10, columns=df.Columns(["a", "b"]), resume=True), V,
         "another list of column names", "with which good", "resume"),
    Case("sample_to classes", "others, resumed",
         lambda b: b.to("kinds.csv", sampler=b.by_class, n=10, labels=0, resume=True,
                        columns=df.Columns(["column 0", "column 1"], "label", ["0", "1", "3"])), V,
         "another list of column names", "with which kinds", "resume"),
    Case("sample_to threads", "zero", lambda b: b.to(threads=0), V, "0", "1 to 4096"),
    # verify
    Case("verify path", "no manifest", lambda b: b.verify("none.npy"), V, "none.npy", "manifest beside it"),
    Case("verify path", "a folder", lambda b: b.verify("folder.npy"), V, "folder.npy", "manifest beside it"),
    Case("verify path", "type", lambda b: df.verify(3), Ty, "3", "a path"),
    Case("verify path", "bytes", lambda b: df.verify(b"x.npy"), Ty, "b'x.npy'", "a path"),
    Case("verify path", "null character", lambda b: b.verify("a\0b"), V, "b", "manifest beside it"),
    Case("verify redraw", "a set", lambda b: b.verify(sampler=b.sampler, redraw={0}), Ty, r"\{0\}", "a list"),
    Case("verify manifest", "empty", lambda b: b.manifest(""), V, "not JSON", "format version 1"),
    Case("verify manifest", "a list", lambda b: b.manifest("[]"), V, "not of type 'object'",
         "format version 1"),
    Case("verify manifest", "NaN", lambda b: b.manifest('{"done": NaN}'), V, "no JSON number", "version 1"),
    Case("verify redraw", "beyond", lambda b: b.verify(sampler=b.sampler, redraw=[1]), V, "1", "0 to 0"),
    Case("verify redraw", "negative", lambda b: b.verify(sampler=b.sampler, redraw=[-1]), V, "-1", "0 to 0"),
    Case("verify redraw", "string", lambda b: b.verify(sampler=b.sampler, redraw="some"), Ty, "'some'",
         "'all'"),
    Case("verify redraw", "an int", lambda b: b.verify(sampler=b.sampler, redraw=0), Ty, "0", "a list"),
    Case("verify sampler", "missing", lambda b: b.verify(redraw=[0]), Ty, "None", "a Sampler"),
    Case("verify sampler", "another model", lambda b: b.verify(sampler=df.Sampler(net(), SCHEDULE),
         redraw=[0]), V,
         "another model", "as of the run"),
    Case("verify sampler", "another solver",
         lambda b: b.verify(sampler=df.Sampler(b.model, SCHEDULE, solver="ddim"), redraw=[0]), V,
         "another solver, ddim", "ddpm"),
    Case("verify labels", "without classes", lambda b: b.verify(sampler=b.sampler, labels=1, redraw=[0]), V,
         "1",
         "None"),
]
# fmt: on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad_long_runs")


@pytest.mark.parametrize("case", CASES, ids=[f"{case.argument}: {case.fault}" for case in CASES])
def test_bad_long_run(case: Case, folder: Path) -> None:
    check_refusal(case, Runs(folder))


def test_the_tables_together_are_long_enough() -> None:
    """At least 150 distinct (argument, fault) over the whole of the public API and the command line."""
    tables = (test_bad_input, test_bad_cli, test_bad_data, test_bad_metrics, test_bad_plotting)
    pairs = [(case.argument, case.fault) for table in tables for case in table.CASES]
    pairs += [(case.argument, case.fault) for case in CASES]
    assert len(set(pairs)) == len(pairs) >= 600
