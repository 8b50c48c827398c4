// The thread pool, compiled into the test program as its own copy.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "numbers.hpp"
#include "testing.hpp"
#include "thread_pool.hpp"

using lluda::Lane;
using lluda::Session;
using lluda::ThreadPool;
using lluda::WorkSplit;

static void resize(int threads) {
    std::lock_guard<std::mutex> lock(ThreadPool::instance().call_mutex());
    ThreadPool::instance().resize(threads);
}

TEST(barriers_order_the_phases_of_a_job) {
    for (int threads : {1, 2, 3, 7}) {
        resize(threads);
        std::vector<int> seen(static_cast<std::size_t>(threads), 0);
        for (int job = 0; job < 30; ++job) {
            std::atomic<int> wrong{0};
            Session session;
            session.run([&](Lane &lane) {
                for (int phase = 1; phase <= 5; ++phase) {
                    seen[static_cast<std::size_t>(lane.index)] = job * 10 + phase;
                    lane.barrier();
                    for (int value : seen) wrong += value != job * 10 + phase;
                    lane.barrier();
                }
            });
            expect_equal(wrong.load(), 0, "lanes that ran ahead of a barrier");
        }
    }
}

TEST(work_is_done_once_each) {
    resize(3);
    for (std::int64_t total : {0, 1, 2, 3, 5, 100, 1001}) {
        std::vector<std::atomic<int>> done(static_cast<std::size_t>(total));
        WorkSplit split;
        split.reset(total, 3);
        Session session;
        session.run([&](Lane &lane) {
            for (std::int64_t item, end; split.take(lane.index, item, end);)
                for (; item < end; ++item) ++done[static_cast<std::size_t>(item)];
        });
        for (auto &count : done) expect_equal(count.load(), 1, "times an item was done");
    }
}

TEST(sleeping_workers_wake) {
    resize(2);
    for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        std::atomic<int> lanes{0};
        Session session;
        session.run([&](Lane &) { ++lanes; });
        expect_equal(lanes.load(), 2, "lanes that ran");
    }
}

TEST(callers_from_several_threads_take_turns) {
    resize(2);
    std::atomic<int> inside{0}, overlaps{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c)
        callers.emplace_back([&] {
            for (int i = 0; i < 20; ++i) {
                Session session;
                if (++inside > 1) ++overlaps;
                session.run([&](Lane &lane) { lane.barrier(); });
                --inside;
            }
        });
    for (auto &caller : callers) caller.join();
    expect_equal(overlaps.load(), 0, "calls that overlapped");
}

#if !defined(__SANITIZE_THREAD__)
TEST(a_forked_child_computes) {
    check_ok(lluda_set_threads(2));
    Random random(9);
    const TestWeight weight(random, 40, 64);
    const std::vector<std::uint16_t> x = random.bf16_normals(64, 1.0f);
    std::vector<float> before(40), after(40);
    check_ok(lluda_linear(&weight.plain, 1, x.data(), 64, before.data(), LLUDA_DTYPE_F32, 40));
    const pid_t child = fork();
    if (child == 0) {
        const int code = lluda_linear(&weight.plain, 1, x.data(), 64, after.data(), LLUDA_DTYPE_F32, 40);
        _exit(code == LLUDA_OK && after == before && lluda_threads() == 2 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child's product differs or did not finish");
}
#endif

TEST(thread_counts_are_checked) {
    check_code(lluda_set_threads(0), LLUDA_BAD_ARGUMENT, "0 threads");
    check_code(lluda_set_threads(257), LLUDA_BAD_ARGUMENT, "257 threads");
    check_ok(lluda_set_threads(3));
    expect_equal(lluda_threads(), 3, "threads");
}

TEST(struct_sizes_are_known) {
    expect_equal(lluda_struct_size("lluda_weight"), sizeof(lluda_weight), "size of lluda_weight");
    expect_equal(lluda_struct_size("nonsense"), 0, "size of an unknown struct");
    expect_equal(lluda_abi_version(), LLUDA_ABI_VERSION, "version");
}
