// lluda_context_create and what is asked of a context.
#include "context.hpp"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include "failure.hpp"

namespace {

// The contexts there are, for a forked child. Never destroyed: contexts may outlive the library's own objects.
struct Contexts {
    std::mutex mutex;
    std::vector<lluda_context *> all;
};

Contexts &contexts() {
    static Contexts *kept = [] {
        auto *made = new Contexts;
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork([] { contexts().mutex.lock(); }, [] { contexts().mutex.unlock(); },
                       [] {
                           for (lluda_context *context : contexts().all) context->begin_anew();
                           contexts().mutex.unlock();
                       });
#endif
        return made;
    }();
    return *kept;
}

}  // namespace

lluda_context::lluda_context(const lluda::Kernels &table, int threads) : kernels(table), pool(threads) {
    std::lock_guard<std::mutex> lock(contexts().mutex);
    contexts().all.push_back(this);
}

lluda_context::~lluda_context() {
    std::lock_guard<std::mutex> lock(contexts().mutex);
    std::vector<lluda_context *> &all = contexts().all;
    all.erase(std::find(all.begin(), all.end(), this));
}

void lluda_context::begin_anew() {
    // What was there is leaked on purpose: its threads do not exist here and cannot be joined, and a call that another
    // thread was in when the process forked has left its scratch memory halfway.
    const int threads = pool.size();
    new (&pool) lluda::ThreadPool(threads);
    new (&scratch) lluda::Scratch;
    new (&call_mutex) std::mutex;
}

namespace lluda {

lluda_context &checked(lluda_context *context) {
    require(context, "context must not be NULL");
    return *context;
}

}  // namespace lluda

using namespace lluda;

int lluda_context_create(const char *isa, int threads, lluda_context **context) {
    return guarded([&] {
        require(context, "context must not be NULL");
        require(threads >= 0 && threads <= kMaxThreads, "threads", threads, "1 .. 256, or 0 for one a CPU");
        *context = std::make_unique<lluda_context>(kernels_named(isa), threads).release();
    });
}

void lluda_context_destroy(lluda_context *context) { delete context; }

const char *lluda_context_isa(const lluda_context *context) { return context ? context->kernels.name : ""; }

int lluda_context_threads(const lluda_context *context) { return context ? context->pool.size() : 0; }
