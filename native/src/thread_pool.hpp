// The library's one pool of threads. The calling thread is lane 0 of every job.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "scratch.hpp"

namespace lluda {

constexpr std::size_t kCacheLine = 64;
constexpr int kMaxThreads = 256;

// Waits without hogging a core: pauses, then yields, then naps, so that it makes progress when oversubscribed.
class Backoff {
public:
    void wait();

private:
    int turns_ = 0;
};

// One thread's view of a running job.
class Lane {
public:
    Lane(int index, int count, class ThreadPool &pool) : index(index), count(count), pool_(pool) {}
    // All lanes of the job meet here; what any wrote before is seen by all after.
    void barrier();

    const int index;
    const int count;

private:
    class ThreadPool &pool_;
};

class ThreadPool {
public:
    static ThreadPool &instance();

    int size() const { return size_; }
    void resize(int threads);

    // Runs body(Lane &) on every lane and returns when all are done. Only through Session.
    void run(void (*body)(void *, Lane &), void *context);

    std::mutex &call_mutex() { return call_mutex_; }
    Scratch &scratch() { return scratch_; }

private:
    friend class Lane;
    ThreadPool();
    void start_workers();
    void stop_workers();
    void work(int index, std::uint64_t seen);
    void await_job(std::uint64_t seen);
    void meet();
    static void forget_workers_after_fork();

    std::mutex call_mutex_;
    Scratch scratch_;
    int size_ = 1;
    std::vector<std::thread> workers_;

    void (*body_)(void *, Lane &) = nullptr;
    void *context_ = nullptr;
    bool stopping_ = false;

    alignas(kCacheLine) std::atomic<std::uint64_t> job_{0};
    alignas(kCacheLine) std::atomic<int> unfinished_{0};
    alignas(kCacheLine) std::atomic<int> arrived_{0};
    alignas(kCacheLine) std::atomic<std::uint64_t> generation_{0};
    alignas(kCacheLine) std::atomic<int> sleepers_{0};
    std::mutex sleep_mutex_;
    std::condition_variable wake_;
};

// Exclusive use of the pool and its scratch memory for one call.
class Session {
public:
    Session() : pool_(ThreadPool::instance()), lock_(pool_.call_mutex()) { pool_.scratch().reset(); }

    int threads() const { return pool_.size(); }

    template <class T>
    T *allocate(std::int64_t count) {
        return static_cast<T *>(pool_.scratch().allocate(static_cast<std::size_t>(count) * sizeof(T)));
    }

    // Work that runs one after the other may lie in the same memory.
    Scratch &scratch() { return pool_.scratch(); }

    // body(Lane &) must not throw.
    template <class Body>
    void run(Body &&body) {
        using Plain = std::remove_reference_t<Body>;
        pool_.run([](void *context, Lane &lane) { (*static_cast<Plain *>(context))(lane); },
                  const_cast<void *>(static_cast<const void *>(&body)));
    }

private:
    ThreadPool &pool_;
    std::lock_guard<std::mutex> lock_;
};

// Items 0 .. total-1 shared out among lanes: each lane first takes its own contiguous range in order (so that it
// streams through memory), then helps the others.
class WorkSplit {
public:
    // Before the lanes start, or by one lane with a barrier after it.
    void reset(std::int64_t total, int lanes);

    // The next items for this lane in begin .. end-1; false when there are none left. Each time half of what is left of
    // a range: few takings (each stops the flow of loads), yet lanes finish together.
    bool take(int lane, std::int64_t &begin, std::int64_t &end);

private:
    struct alignas(kCacheLine) Range {
        std::atomic<std::int64_t> next{0};
        std::int64_t end = 0;
    };
    int lanes_ = 0;
    int capacity_ = 0;
    std::unique_ptr<Range[]> ranges_;
};

}  // namespace lluda
