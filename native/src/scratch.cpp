#include "scratch.hpp"

#include <new>

namespace lluda {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kFirstChunk = std::size_t{1} << 20;

}  // namespace

void Scratch::release() {
    for (Chunk &chunk : chunks_) ::operator delete (chunk.memory, std::align_val_t{kAlignment});
    chunks_.clear();
    used_ = 0;
}

void Scratch::add_chunk(std::size_t bytes) {
    chunks_.reserve(chunks_.size() + 1);
    auto *memory = static_cast<std::byte *>(::operator new (bytes, std::align_val_t{kAlignment}));
    chunks_.push_back({memory, bytes});
    used_ = 0;
}

void Scratch::reset() {
    if (chunks_.size() > 1) {
        std::size_t total = 0;
        for (const Chunk &chunk : chunks_) total += chunk.bytes;
        release();
        add_chunk(total);
    }
    used_ = 0;
}

void *Scratch::allocate(std::size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (chunks_.empty() || used_ + bytes > chunks_.back().bytes) {
        add_chunk(bytes > kFirstChunk ? bytes : kFirstChunk);
    }
    void *memory = chunks_.back().memory + used_;
    used_ += bytes;
    return memory;
}

}  // namespace lluda
