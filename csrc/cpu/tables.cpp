#include "tables.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace df::cpu {
namespace {

void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

constexpr int32_t kMaxCells = 1 << 20;

// Samples of a block, whole tiles of every instruction set: their state is 40 to 70 bytes each.
constexpr int64_t kBytesPerSample = 8, kTiles = 144, kSmallestBlock = 57 * kTiles,
                  kLargestBlock = 455 * kTiles;

// Coefficients of splines from function values, in place, along an axis of n nodes `stride` apart, for
// `count` functions side by side: c[k-1] + 4 c[k] + c[k+1] = 6 f[k] (de Boor 1978), by Thomas' elimination.
// At the ends c is f less a sixth of the second difference of the last three nodes.
void solve(double* f, int n, int64_t stride, int64_t count) {
    const auto end = [&](int64_t at, int64_t inward) {
        for (int64_t i = at; i < at + count; ++i)
            f[i] -= (f[i] - 2.0 * f[i + inward] + f[i + 2 * inward]) / 6.0;
    };
    end(0, stride);
    end((n - 1) * stride, -stride);
    std::vector<double> ratio(static_cast<size_t>(n), 0.0);
    for (int k = 1; k < n - 1; ++k) {
        const double r = 1.0 / (4.0 - ratio[size_t(k - 1)]);
        ratio[size_t(k)] = r;
        double *here = f + k * stride, *before = here - stride;
        for (int64_t i = 0; i < count; ++i) here[i] = (6.0 * here[i] - before[i]) * r;
    }
    for (int k = n - 2; k >= 1; --k) {
        double *here = f + k * stride, *after = here + stride;
        for (int64_t i = 0; i < count; ++i) here[i] -= ratio[size_t(k)] * after[i];
    }
}

}  // namespace

void fit(int dim, const int32_t* cells, const float* nodes, float* values,
         const std::function<bool()>& keep_going) {
    const int n0 = cells[0] + 1 + 2 * kFitMargin, n1 = dim == 1 ? 1 : cells[1] + 1 + 2 * kFitMargin;
    std::vector<double> c(nodes, nodes + int64_t(n0) * n1 * dim);
    // Once in so many rows of the grid, and columns: 2^20 nodes take some 30 ms.
    const int rows = std::max(1, (1 << 20) / n0), columns = std::max(1, (1 << 20) / n1);
    for (int row = 0; row < n1; ++row) {
        if (row % rows == 0 && !keep_going()) return;
        solve(c.data() + int64_t(row) * n0 * dim, n0, dim, dim);
    }
    if (dim == 1) {
        for (int cell = 0; cell < cells[0]; ++cell, values += 4) {
            const double* b = c.data() + cell + kFitMargin - 1;
            values[0] = float((b[0] + 4.0 * b[1] + b[2]) / 6.0);
            values[1] = float((b[2] - b[0]) / 2.0);
            values[2] = float((b[0] - 2.0 * b[1] + b[2]) / 2.0);
            values[3] = float((b[3] - b[0] + 3.0 * (b[1] - b[2])) / 6.0);
        }
        return;
    }
    for (int column = 0; column < n0; column += columns) {
        if (!keep_going()) return;
        solve(c.data() + 2 * column, n1, int64_t(n0) * 2, 2 * std::min(columns, n0 - column));
    }
    for (int row = 0; row < cells[1] + 3; ++row) {
        if (row % rows == 0 && !keep_going()) return;
        const double* from = c.data() + (int64_t(row + kFitMargin - 1) * n0 + kFitMargin - 1) * 2;
        for (int i = 0; i < (cells[0] + 3) * 2; ++i)
            *values++ = float(from[i] / 36.0);  // lookup.h takes the splines six times, along each axis
    }
}

Tables::Tables(int dim, int n_classes, std::vector<int32_t> of_row, const float* scale, const float* shift,
               const int32_t* cells, int64_t n_grids, const float* values, int64_t n_values)
    : dim_(dim), n_classes_(n_classes), of_row_(std::move(of_row)), values_(values) {
    require(dim == 1 || dim == 2, "dim: accepted: 1 or 2");
    require(n_classes >= 0 && n_classes <= int(kMaxTables), "n_classes: out of range");
    int64_t used = 0;
    for (int64_t i = 0; i < n_grids; ++i) {
        Grid g{};
        int64_t floats = dim == 1 ? 4 : 2;
        for (int j = 0; j < dim; ++j) {
            g.scale[j] = scale[i * dim + j];
            g.shift[j] = shift[i * dim + j];
            g.cells[j] = cells[i * dim + j];
            require(std::isfinite(g.scale[j]) && std::isfinite(g.shift[j]), "grids: not finite");
            require(g.cells[j] >= 1 && g.cells[j] <= kMaxCells, "cells: accepted: 1 to 2^20");
            floats *= dim == 1 ? g.cells[j] : g.cells[j] + 3;
        }
        const int64_t of_classes = floats * (n_classes ? n_classes : 1);
        require(of_classes < int64_t(1) << 31, "cells: a row's table has 2^31 floats or more");
        g.class_floats = int32_t(floats);
        g.offset = used;
        used += of_classes;
        grids_.push_back(g);
    }
    require(used == n_values, "values: not as many as the grids have");
    for (int32_t grid : of_row_)
        require(grid >= -1 && grid < n_grids, "of_row: names a grid that does not exist");
    // A block reads each row's table once from memory: where it is large, more samples share that.
    const int64_t bytes = n_grids ? used / n_grids * int64_t(sizeof(float)) : 0;
    block_ =
        int(std::clamp<int64_t>(bytes / kBytesPerSample / kTiles * kTiles, kSmallestBlock, kLargestBlock));
}

}  // namespace df::cpu
