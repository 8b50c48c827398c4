// Launches recorded by another library's functions, whose addresses the caller gives: nothing of it is linked.
#include <cstddef>
#include <cstdint>

#include "lluda_native.h"

void lluda_record_launches(void *pass, const uint64_t *launches, int64_t count, void *set_pipeline,
                           void *set_bind_group, void *dispatch) {
    using SetPipeline = void (*)(void *, void *);
    using SetBindGroup = void (*)(void *, uint32_t, void *, std::size_t, const uint32_t *);
    using Dispatch = void (*)(void *, uint32_t, uint32_t, uint32_t);
    const auto pipeline_of = reinterpret_cast<SetPipeline>(set_pipeline);
    const auto group_of = reinterpret_cast<SetBindGroup>(set_bind_group);
    const auto dispatch_of = reinterpret_cast<Dispatch>(dispatch);
    uint64_t last = 0;
    for (int64_t index = 0; index < count; ++index) {
        const uint64_t *launch = launches + 5 * index;
        if (launch[0] != last) {
            last = launch[0];
            pipeline_of(pass, reinterpret_cast<void *>(static_cast<uintptr_t>(last)));
        }
        group_of(pass, 0, reinterpret_cast<void *>(static_cast<uintptr_t>(launch[1])), 0, nullptr);
        dispatch_of(pass, static_cast<uint32_t>(launch[2]), static_cast<uint32_t>(launch[3]),
                    static_cast<uint32_t>(launch[4]));
    }
}
