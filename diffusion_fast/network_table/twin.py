"""The interpolation of csrc/cpu/lookup.h in plain torch: what its tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_fast.network_table.table import NetworkTable


def interpolated(table: NetworkTable, row: int, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The network's output for a row at x (n, dim), with labels (n,) of a plan with classes.

    Returns F (n, dim) in x's dtype, which means nothing outside of the grid, and inside (n,) bool.
    """
    grid = int(table.of_row[row])
    scale, shift = (torch.from_numpy(part[grid]).to(x.dtype) for part in (table.scale, table.shift))
    cells = torch.from_numpy(table.cells[grid])
    position = scale * x + shift
    inside = ((position >= 0) & (position < cells)).all(1)
    position = torch.where(inside[:, None], position, 0)
    cell = position.long()
    t = position - cell
    y = torch.zeros(len(x), dtype=torch.long) if labels is None else labels.long()
    values = _values(table, grid).to(x.dtype)
    if table.dim == 1:
        c0, c1, c2, c3 = values[y, cell[:, 0]].unbind(1)
        s = t[:, 0]
        return (c0 + s * (c1 + s * (c2 + s * c3)))[:, None], inside
    near = torch.arange(4)
    rows, columns = (cell[:, axis, None] + near for axis in (1, 0))
    nodes = values[y[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.einsum("nr,nc,nrco->no", _splines(t[:, 1]), _splines(t[:, 0]), nodes), inside


def _values(table: NetworkTable, grid: int) -> Tensor:
    """(classes, cells, 4), or (classes, cells + 3, cells + 3, 2) with the second axis of x first."""
    classes = max(table.n_classes, 1)
    shapes = [(4 * n[0],) if len(n) == 1 else (n[1] + 3, n[0] + 3, 2) for n in table.cells.tolist()]
    sizes = [classes * int(torch.Size(shape).numel()) for shape in shapes]
    at = sum(sizes[:grid])
    flat = torch.from_numpy(table.values[at : at + sizes[grid]])
    return flat.view(classes, *shapes[grid]) if table.dim == 2 else flat.view(classes, -1, 4)


def _splines(t: Tensor) -> Tensor:
    """(n, 4), 6 times the cubic B-splines that are not zero at t in [0, 1)."""
    u = 1 - t
    return torch.stack([u**3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * u**2 + 3 * u**3, t**3], dim=1)
