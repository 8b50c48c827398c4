// Contexts; and the thread pool, compiled into the test program as its own copy.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "numbers.hpp"
#include "testing.hpp"
#include "thread_pool.hpp"

using lluda::Lane;
using lluda::ThreadPool;
using lluda::WorkSplit;

template <class Body>
static void run(ThreadPool &pool, Body body) {
    pool.run([](void *of, Lane &lane) { (*static_cast<Body *>(of))(lane); }, &body);
}

TEST(barriers_order_the_phases_of_a_job) {
    for (int threads : {1, 2, 3, 7}) {
        ThreadPool pool(threads);
        std::vector<int> seen(static_cast<std::size_t>(threads), 0);
        for (int job = 0; job < 30; ++job) {
            std::atomic<int> wrong{0};
            run(pool, [&](Lane &lane) {
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
    ThreadPool pool(3);
    for (std::int64_t total : {0, 1, 2, 3, 5, 100, 1001}) {
        std::vector<std::atomic<int>> done(static_cast<std::size_t>(total));
        WorkSplit split;
        split.reset(total, 3);
        run(pool, [&](Lane &lane) {
            for (std::int64_t item, end; split.take(lane.index, item, end);)
                for (; item < end; ++item) ++done[static_cast<std::size_t>(item)];
        });
        for (auto &count : done) expect_equal(count.load(), 1, "times an item was done");
    }
}

TEST(sleeping_workers_wake) {
    ThreadPool pool(2);
    for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        std::atomic<int> lanes{0};
        run(pool, [&](Lane &) { ++lanes; });
        expect_equal(lanes.load(), 2, "lanes that ran");
    }
}

// A product whose result is known, over and over; counts what was wrong.
struct Caller {
    explicit Caller(std::uint64_t seed) : random(seed), weight(random, 96, 128), x(random.bf16_normals(128, 1.0f)) {
        compute(context(), expected);
    }
    int compute(lluda_context *with, std::vector<float> &y) const {
        return lluda_linear(with, &weight.plain, 1, x.data(), 128, y.data(), LLUDA_DTYPE_F32, 96);
    }
    void repeat(lluda_context *with, int times) {
        std::vector<float> y(96);
        for (int i = 0; i < times; ++i) wrong += compute(with, y) != LLUDA_OK || y != expected;
    }

    Random random;
    TestWeight weight;
    std::vector<std::uint16_t> x;
    std::vector<float> expected = std::vector<float>(96);
    int wrong = 0;
};

TEST(callers_from_several_threads_take_turns_with_one_context) {
    use_threads(2);
    std::vector<Caller> callers;
    for (std::uint64_t c = 0; c < 4; ++c) callers.emplace_back(c);
    std::vector<std::thread> threads;
    for (Caller &caller : callers) threads.emplace_back([&] { caller.repeat(context(), 50); });
    for (auto &thread : threads) thread.join();
    for (const Caller &caller : callers) expect_equal(caller.wrong, 0, "wrong products");
}

TEST(contexts_in_several_threads_do_not_disturb_each_other) {
    std::vector<Caller> callers;
    std::vector<lluda_context *> contexts(4);
    for (std::uint64_t c = 0; c < 4; ++c) {
        callers.emplace_back(c);
        check_ok(lluda_context_create(lluda_context_isa(context()), 1 + static_cast<int>(c % 3), &contexts[c]));
    }
    std::vector<std::thread> threads;
    for (std::size_t c = 0; c < 4; ++c) threads.emplace_back([&, c] { callers[c].repeat(contexts[c], 50); });
    for (auto &thread : threads) thread.join();
    for (const Caller &caller : callers) expect_equal(caller.wrong, 0, "wrong products");
    for (lluda_context *made : contexts) lluda_context_destroy(made);
}

TEST(contexts_keep_their_own_kernels) {
    lluda_context *portable = nullptr;
    check_ok(lluda_context_create("portable", 1, &portable));
    const std::string before = lluda_context_isa(context());
    expect(std::string(lluda_context_isa(portable)) == "portable", "the kernels asked for");
    expect(lluda_context_isa(context()) == before, "another context's kernels stay");
    lluda_context_destroy(portable);
}

#if !defined(__SANITIZE_THREAD__)
TEST(a_forked_child_computes) {
    use_threads(2);
    Random random(9);
    const TestWeight weight(random, 40, 64);
    const std::vector<std::uint16_t> x = random.bf16_normals(64, 1.0f);
    std::vector<float> before(40), after(40);
    check_ok(lluda_linear(context(), &weight.plain, 1, x.data(), 64, before.data(), LLUDA_DTYPE_F32, 40));
    const pid_t child = fork();
    if (child == 0) {
        const int code = lluda_linear(context(), &weight.plain, 1, x.data(), 64, after.data(), LLUDA_DTYPE_F32, 40);
        _exit(code == LLUDA_OK && after == before && lluda_context_threads(context()) == 2 ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child's product differs or did not finish");
}
#endif

TEST(options_of_contexts_are_checked) {
    lluda_context *made = nullptr;
    check_code(lluda_context_create(nullptr, -1, &made), LLUDA_BAD_ARGUMENT, "-1 threads");
    check_code(lluda_context_create(nullptr, 257, &made), LLUDA_BAD_ARGUMENT, "257 threads");
    check_code(lluda_context_create("nonsense", 1, &made), LLUDA_BAD_ARGUMENT, "unknown kernels");
    check_code(lluda_context_create(nullptr, 1, nullptr), LLUDA_BAD_ARGUMENT, "nowhere to put it");
    expect(made == nullptr, "a context that was refused");
    use_threads(3);
    expect_equal(lluda_context_threads(context()), 3, "threads");
}

TEST(struct_sizes_are_known) {
    expect_equal(lluda_struct_size("lluda_weight"), sizeof(lluda_weight), "size of lluda_weight");
    expect_equal(lluda_struct_size("nonsense"), 0, "size of an unknown struct");
    expect_equal(lluda_abi_version(), LLUDA_ABI_VERSION, "version");
}
