// A context: the kernels, threads and working memory that calls use; and a session, one call's use of it.
#pragma once

#include <cstdint>
#include <mutex>
#include <type_traits>

#include "kernels.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"

// Calls with one context take turns; calls with different ones run at the same time.
struct lluda_context {
    lluda_context(const lluda::Kernels &table, int threads);
    ~lluda_context();
    lluda_context(const lluda_context &) = delete;
    lluda_context &operator=(const lluda_context &) = delete;

    // In a forked child, which has no workers and perhaps a locked mutex: with a fresh pool of the same size.
    void begin_anew();

    const lluda::Kernels &kernels;
    lluda::ThreadPool pool;
    lluda::Scratch scratch;
    std::mutex call_mutex;
};

namespace lluda {

// The kernels of that name ("auto" or null: the best that run here). Throws Failure if they cannot be had.
const Kernels &kernels_named(const char *name);

// The context of a call. Throws Failure if it is null.
lluda_context &checked(lluda_context *context);

// Exclusive use of a context for one call.
class Session {
public:
    explicit Session(lluda_context &context) : context_(context), lock_(context.call_mutex) {
        context_.scratch.reset();
    }

    const Kernels &kernels() const { return context_.kernels; }
    int threads() const { return context_.pool.size(); }

    template <class T>
    T *allocate(std::int64_t count) {
        return static_cast<T *>(scratch().allocate(static_cast<std::size_t>(count) * sizeof(T)));
    }

    // Work that runs one after the other may lie in the same memory.
    Scratch &scratch() { return context_.scratch; }

    // body(Lane &) must not throw.
    template <class Body>
    void run(Body &&body) {
        using Plain = std::remove_reference_t<Body>;
        context_.pool.run([](void *of, Lane &lane) { (*static_cast<Plain *>(of))(lane); },
                          const_cast<void *>(static_cast<const void *>(&body)));
    }

private:
    lluda_context &context_;
    std::lock_guard<std::mutex> lock_;
};

}  // namespace lluda
