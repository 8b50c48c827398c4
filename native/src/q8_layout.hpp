// Geometry of Q8_0 rows as GGUF files hold them: blocks of a float16 scale d and 32 int8 q, one value d * q each.
#pragma once

#include <cstdint>

namespace lluda {

constexpr std::int64_t kQ8Weights = 32;  // in a block
constexpr std::int64_t kQ8Bytes = 34;    // of a block
constexpr std::int64_t kQ8Values = 2;    // offset of the q in a block

}  // namespace lluda
