// Working memory of one call, kept between calls.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace lluda {

// A bump allocator: everything is given back at once by reset(). After a call that needed several chunks the next
// reset() makes one chunk of that size, so that a steady state allocates nothing.
class Scratch {
public:
    ~Scratch() { release(); }

    void reset();
    // 64-byte aligned, not initialised. Throws std::bad_alloc.
    void *allocate(std::size_t bytes);

    // What is allocated after a mark is given back by rewinding to it.
    struct Mark {
        std::size_t chunks, used;
    };
    Mark mark() const { return {chunks_.size(), used_}; }
    void rewind(Mark mark) { used_ = chunks_.size() == mark.chunks ? mark.used : 0; }

private:
    struct Chunk {
        std::byte *memory;
        std::size_t bytes;
    };
    void release();
    void add_chunk(std::size_t bytes);

    std::vector<Chunk> chunks_;
    std::size_t used_ = 0;
};

}  // namespace lluda
