#include "thread_pool.hpp"

#include <algorithm>
#include <chrono>

#if defined(__linux__)
#include <sched.h>
#endif

namespace lluda {
namespace {

using Clock = std::chrono::steady_clock;

// A decode step makes its calls some tens of microseconds apart: a worker stays awake for those, and no longer.
constexpr auto kSpinTime = std::chrono::microseconds(60);
constexpr auto kYieldTime = std::chrono::microseconds(250);
constexpr int kPausesPerTurn = 16;

void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int available_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    int count = static_cast<int>(std::thread::hardware_concurrency());
    return count > 0 ? count : 1;
}

}  // namespace

void Backoff::wait() {
    constexpr int kSpins = 1000, kYields = 3000;
    ++turns_;
    if (turns_ < kSpins) {
        pause_cpu();
    } else if (turns_ < kYields) {
        std::this_thread::yield();
    } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}

void Lane::barrier() {
    if (count > 1) pool_.barrier_wait();
}

ThreadPool::ThreadPool(int threads) : size_(threads > 0 ? threads : std::min(available_cpus(), kMaxThreads)) {}

ThreadPool::~ThreadPool() { stop_workers(); }

void ThreadPool::start_workers() {
    std::uint64_t seen = job_.load(std::memory_order_relaxed);
    workers_.reserve(static_cast<std::size_t>(size_ - 1));
    while (static_cast<int>(workers_.size()) < size_ - 1) {
        int index = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, index, seen] { work(index, seen); });
    }
}

void ThreadPool::stop_workers() {
    if (workers_.empty()) return;
    stopping_ = true;
    job_.fetch_add(1, std::memory_order_seq_cst);
    {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
        wake_.notify_all();
    }
    for (std::thread &worker : workers_) worker.join();
}

void ThreadPool::run(void (*body)(void *, Lane &), void *context) {
    if (static_cast<int>(workers_.size()) < size_ - 1) start_workers();
    Lane lane(0, size_, *this);
    if (size_ == 1) {
        body(context, lane);
        return;
    }
    body_ = body;
    context_ = context;
    unfinished_.store(size_ - 1, std::memory_order_relaxed);
    job_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(sleep_mutex_);
        wake_.notify_all();
    }
    body(context, lane);
    Backoff backoff;
    while (unfinished_.load(std::memory_order_acquire) != 0) backoff.wait();
}

void ThreadPool::work(int index, std::uint64_t seen) {
    for (;;) {
        await_job(seen);
        ++seen;
        if (stopping_) return;
        Lane lane(index, size_, *this);
        body_(context_, lane);
        unfinished_.fetch_sub(1, std::memory_order_release);
    }
}

void ThreadPool::await_job(std::uint64_t seen) {
    auto changed = [&] { return job_.load(std::memory_order_seq_cst) != seen; };
    const auto start = Clock::now();
    for (;;) {
        for (int i = 0; i < kPausesPerTurn; ++i) {
            if (changed()) return;
            pause_cpu();
        }
        const auto waited = Clock::now() - start;
        if (waited > kYieldTime) break;
        if (waited > kSpinTime) std::this_thread::yield();
    }
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    // pthread's own: std::condition_variable::wait is newer than the libstdc++ of manylinux_2_28.
    while (!changed()) pthread_cond_wait(wake_.native_handle(), lock.mutex()->native_handle());
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void ThreadPool::barrier_wait() {
    const std::uint64_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        return;
    }
    Backoff backoff;
    while (generation_.load(std::memory_order_acquire) == generation) backoff.wait();
}

void WorkSplit::reset(std::int64_t total, int lanes) {
    if (lanes > capacity_) {
        ranges_ = std::make_unique<Range[]>(static_cast<std::size_t>(lanes));
        capacity_ = lanes;
    }
    lanes_ = lanes;
    for (int i = 0; i < lanes; ++i) {
        ranges_[i].next.store(total * i / lanes, std::memory_order_relaxed);
        ranges_[i].end = total * (i + 1) / lanes;
    }
}

bool WorkSplit::take(int lane, std::int64_t &begin, std::int64_t &end) {
    for (int i = 0; i < lanes_; ++i) {
        Range &range = ranges_[(lane + i) % lanes_];
        std::int64_t next = range.next.load(std::memory_order_relaxed);
        while (next < range.end) {
            const std::int64_t stop = next + (range.end - next + 1) / 2;
            if (range.next.compare_exchange_weak(next, stop, std::memory_order_relaxed)) {
                begin = next;
                end = stop;
                return true;
            }
        }
    }
    return false;
}

}  // namespace lluda
