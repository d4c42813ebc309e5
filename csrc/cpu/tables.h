// The tables of a plan's rows, checked: which grid a row has, and where its values lie.
#pragma once
#include <functional>
#include <vector>

#include "kernels.h"

namespace df::cpu {

// Nodes beyond each end of the grid that a fit takes, so that what it assumes there has died out: on a grid
// of `cells` they lie at the whole numbers from -kFitMargin to cells + kFitMargin.
constexpr int kFitMargin = 4;

// A look-up beside a network's multiply-adds, by the elements of a sample: what both cost on a core
// (benchmarks/NOTES.md).
constexpr int64_t kLookupWork[] = {20, 300};

// The values of one grid of one class, as Tables takes them, from the function at the nodes (axis 1, axis 0,
// output). Interpolating cubic splines: in a smooth function their error, h^4 / 384 times the fourth
// derivative in the middle of a cell, is a ninth of that of the cubic through the four nodes around it.
// keep_going is called at least once for 2^20 nodes; after false the values are nothing.
void fit(int dim, const int32_t* cells, const float* nodes, float* values,
         const std::function<bool()>& keep_going);

class Tables {
  public:
    // scale, shift, cells: (n_grids, dim). values, grid after grid and class after class: of a cell on the
    // line its 4 coefficients; in the plane (cells + 3) x (cells + 3) x 2 coefficients of splines, the first
    // axis running faster. They stay the caller's. Throws std::invalid_argument that names the field.
    Tables(int dim, int n_classes, std::vector<int32_t> of_row, const float* scale, const float* shift,
           const int32_t* cells, int64_t n_grids, const float* values, int64_t n_values);

    TablesView view() const { return {grids_.data(), of_row_.data(), values_, block_}; }
    int dim() const { return dim_; }
    int n_classes() const { return n_classes_; }
    int64_t n_rows() const { return int64_t(of_row_.size()); }
    int64_t n_grids() const { return int64_t(grids_.size()); }

  private:
    int dim_, n_classes_, block_;
    std::vector<int32_t> of_row_;
    std::vector<Grid> grids_;
    const float* values_;
};

}  // namespace df::cpu
