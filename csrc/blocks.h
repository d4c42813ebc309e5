// Memory of large results, kept for the next ones. A new result of 134 MB costs up to three times the step
// that fills it, in page faults; a loop gives back each result as it makes the next, so the same few blocks
// go round. What is kept is marked as free (MADV_FREE): the system takes it when it needs memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace df {

class Block {
  public:
    explicit Block(size_t bytes);  // throws std::bad_alloc
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    void* data_;
    size_t bytes_;
};

size_t kept_bytes();  // of blocks that nobody has

}  // namespace df
