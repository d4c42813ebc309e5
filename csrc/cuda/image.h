// The image of a program while it is made: arrays one behind the other, each at a multiple of 16 bytes.
#pragma once
#include <cstring>
#include <vector>

#include "chain_args.h"

namespace df::cuda {

class Image {
  public:
    const std::vector<uint32_t>& words() const { return words_; }

    // Returns where the values begin.
    template <class T>
    int64_t append(const std::vector<T>& values) {
        const size_t at = words_.size(), bytes = values.size() * sizeof(T);
        words_.resize(at + (bytes + 15) / 16 * 4);
        if (bytes) std::memcpy(words_.data() + at, values.data(), bytes);
        return int64_t(at);
    }

    int64_t append_floats(const Plan& plan, int64_t offset, int64_t count) {
        if (offset < 0) return kAbsent;
        const auto first = plan.blob.begin() + offset;
        return append(std::vector<float>(first, first + count));
    }

  private:
    std::vector<uint32_t> words_;
};

}  // namespace df::cuda
