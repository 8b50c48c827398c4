// A context's pool of threads. The calling thread is lane 0 of every job.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

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
    // Waits until all lanes of the job are here; what any wrote before is seen by all after.
    void barrier();

    const int index;
    const int count;

private:
    class ThreadPool &pool_;
};

class ThreadPool {
public:
    // 0: as many threads as CPUs this process may run on, at most kMaxThreads. They start with the first job.
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool &) = delete;
    ThreadPool &operator=(const ThreadPool &) = delete;

    int size() const { return size_; }

    // Runs body(Lane &) on every lane and returns when all are done. One caller at a time (Session sees to it).
    void run(void (*body)(void *, Lane &), void *context);

private:
    friend class Lane;
    void start_workers();
    void stop_workers();
    void work(int index, std::uint64_t seen);
    void await_job(std::uint64_t seen);
    void barrier_wait();

    const int size_;
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
