// Decode steps of Qwen3-0.6B's shapes (or fewer layers) by kernels, format and number of rows, interleaved; and the
// machine's streaming bandwidth before and after.
//
//   decode_bench [--threads N] [--layers N] [--rows 1,2,4,8,16] [--formats 0,1,2,3] [--caches 160,1000] [--repeat N]
//                [--isa NAME,NAME] [--small-pages] [--cpu-time]
//
// Prints one JSON object a line; quiet and median as in Times.
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "lluda_native.h"
#include "thread_pool.hpp"

namespace {

lluda_context *made_context = nullptr;
lluda_context *context() { return made_context; }

using Clock = std::chrono::steady_clock;

bool cpu_time = false;  // of the calling thread instead of the wall's: with one thread, on a machine that others use

double now() {
    if (!cpu_time) return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double seconds_of(const std::function<void()> &work) {
    const double start = now();
    work();
    return now() - start;
}

// A pass goes over slices of about 30 MB. quiet: the sum of each slice's best time, an estimate of the undisturbed pass
// on a machine that others use too. median: of whole passes.
struct Times {
    double quiet, median;
};

std::vector<Times> measure(int repeat, int slices, const std::vector<std::function<void(int)>> &works) {
    const auto count = static_cast<size_t>(slices);
    std::vector<std::vector<double>> best(works.size(), std::vector<double>(count, 1e9)), passes(works.size());
    for (int i = 0; i < repeat; ++i) {
        for (auto &of : passes) of.push_back(0);
        for (int slice = 0; slice < slices; ++slice)
            for (size_t turn = 0; turn < works.size(); ++turn) {
                // Each in turn is the first, which has to read what the others may find in the last-level cache.
                const size_t w = (turn + static_cast<size_t>(i)) % works.size();
                const double taken = seconds_of([&] { works[w](slice); });
                passes[w].back() += taken;
                double &least = best[w][static_cast<size_t>(slice)];
                least = std::min(least, taken);
            }
    }
    std::vector<Times> times;
    for (size_t w = 0; w < works.size(); ++w) {
        std::sort(passes[w].begin(), passes[w].end());
        times.push_back({std::accumulate(best[w].begin(), best[w].end(), 0.0), passes[w][passes[w].size() / 2]});
    }
    return times;
}

void check(int code) {
    if (code == LLUDA_OK) return;
    std::fprintf(stderr, "error %d: %s\n", code, lluda_last_error());
    std::exit(1);
}

bool small_pages = false;

void *take_memory(int64_t bytes) {
    void *memory = nullptr;
    if (!small_pages)
        memory = lluda_allocate(bytes);
    else if (posix_memalign(&memory, 4096, static_cast<size_t>(bytes)) != 0)
        memory = nullptr;
    if (!memory) {
        std::fprintf(stderr, "no memory\n");
        std::exit(1);
    }
    return memory;
}

// Normally distributed weights of standard deviation 0.02, drawn from a table of 65,536 of them.
class Normal {
public:
    Normal() : table_(65536) {
        for (auto &value : table_) {
            float sum = -6.0f;
            for (int i = 0; i < 12; ++i) sum += static_cast<float>(next() >> 40) / 16777216.0f;
            const float weight = sum * 0.02f;
            uint32_t bits;
            std::memcpy(&bits, &weight, 4);
            value = static_cast<uint16_t>((bits + 0x8000) >> 16);
        }
    }
    void fill(uint16_t *out, int64_t count) {
        for (int64_t i = 0; i < count; ++i) out[i] = table_[next() >> 48];
    }

private:
    uint64_t next() {
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        return state_;
    }
    uint64_t state_ = 88172645463325252ull;
    std::vector<uint16_t> table_;
};

constexpr int kFormats = 4;
constexpr const char *kNames[kFormats] = {"BF16", "packed", "Q8_0", "Q8_0 rounded"};

struct Matrix {
    lluda_weight in[kFormats]{};
    int64_t bytes[kFormats]{};
};

// Blocks as they come: random q, one scale.
void make_q8_0(Matrix &m, Normal &normal) {
    const lluda_weight &plain = m.in[LLUDA_FORMAT_BF16];
    const int64_t bytes = plain.out_features * plain.in_features / 32 * 34;
    auto *blocks = static_cast<uint8_t *>(take_memory(bytes));
    normal.fill(reinterpret_cast<uint16_t *>(blocks), bytes / 2);
    for (int64_t i = 0; i < bytes; i += 34) blocks[i] = 0x3f, blocks[i + 1] = 0x05;
    for (int format : {LLUDA_FORMAT_Q8_0, LLUDA_FORMAT_Q8_0_ROWS}) {
        m.in[format] = plain;
        m.in[format].format = format;
        m.in[format].values = blocks;
        m.bytes[format] = bytes;
    }
}

Matrix make_matrix(Normal &normal, int64_t out, int64_t in) {
    Matrix m;
    m.bytes[LLUDA_FORMAT_BF16] = out * in * 2;
    auto *values = static_cast<uint16_t *>(take_memory(m.bytes[LLUDA_FORMAT_BF16]));
    normal.fill(values, out * in);
    lluda_weight &plain = m.in[LLUDA_FORMAT_BF16];
    plain.format = LLUDA_FORMAT_BF16;
    plain.out_features = out;
    plain.in_features = in;
    plain.values = values;
    int64_t &packed = m.bytes[LLUDA_FORMAT_PACKED_BF16];
    check(lluda_pack_size(context(), values, out, in, &packed));
    void *buffer = take_memory(packed);
    check(lluda_pack(context(), values, out, in, buffer, packed));
    check(lluda_packed_view(buffer, packed, &m.in[LLUDA_FORMAT_PACKED_BF16]));
    make_q8_0(m, normal);
    return m;
}

// The machine's streaming read bandwidth: every thread sums its part of each buffer, prefetching `ahead` bytes.
uint64_t sum_of(const uint64_t *p, size_t words, size_t ahead) {
    uint64_t a[8] = {};
    for (size_t i = 0; i + 8 <= words; i += 8) {
        if (ahead) __builtin_prefetch(reinterpret_cast<const char *>(p + i) + ahead);
        for (size_t c = 0; c < 8; ++c) a[c] += p[i + c];
    }
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

std::atomic<uint64_t> sink{0};

void stream(lluda::ThreadPool &pool, const std::vector<Matrix> &slice, size_t ahead) {
    auto body = [&](lluda::Lane &lane) {
        uint64_t sum = 0;
        for (const Matrix &m : slice) {
            const size_t part = static_cast<size_t>(m.bytes[0]) / 8 / static_cast<size_t>(lane.count);
            sum += sum_of(static_cast<const uint64_t *>(m.in[0].values) + part * static_cast<size_t>(lane.index), part,
                          ahead);
        }
        sink += sum;
    };
    pool.run([](void *of, lluda::Lane &lane) { (*static_cast<decltype(body) *>(of))(lane); }, &body);
}

struct Layer {
    Matrix q, k, v, o, gate, up, down;
};

struct Shapes {
    int64_t hidden = 1024, heads = 16, kv_heads = 8, head_dim = 128, intermediate = 3072, vocabulary = 151936;
};

struct Bench {
    Shapes s;
    std::vector<Layer> layers;
    std::vector<Matrix> head;  // in parts, each a slice
    std::vector<std::vector<Matrix>> slices;
    double bytes[kFormats] = {};
    int repeat = 9, threads = 2;

    void build(int count) {
        Normal normal;
        const int64_t query = s.heads * s.head_dim, key = s.kv_heads * s.head_dim;
        for (int i = 0; i < count; ++i)
            layers.push_back({make_matrix(normal, query, s.hidden), make_matrix(normal, key, s.hidden),
                              make_matrix(normal, key, s.hidden), make_matrix(normal, s.hidden, query),
                              make_matrix(normal, s.intermediate, s.hidden),
                              make_matrix(normal, s.intermediate, s.hidden),
                              make_matrix(normal, s.hidden, s.intermediate)});
        constexpr int kParts = 10;
        for (int i = 0; i < kParts; ++i)
            head.push_back(make_matrix(normal, s.vocabulary * (i + 1) / kParts - s.vocabulary * i / kParts, s.hidden));
        for (Layer &l : layers) slices.push_back({l.q, l.k, l.v, l.o, l.gate, l.up, l.down});
        for (Matrix &m : head) slices.push_back({m});
        for (const auto &slice : slices)
            for (const Matrix &m : slice)
                for (int format = 0; format < kFormats; ++format) bytes[format] += static_cast<double>(m.bytes[format]);
        for (int format = 0; format < kFormats; ++format)
            std::printf("{\"format\": \"%s\", \"gigabytes\": %.3f}\n", kNames[format], bytes[format] / 1e9);
    }

    void bandwidth() {
        lluda::ThreadPool pool(threads);
        for (size_t ahead : {size_t{0}, size_t{1024}, size_t{2048}, size_t{4096}}) {
            const Times t = measure(repeat, static_cast<int>(slices.size()), {[&](int slice) {
                                        stream(pool, slices[static_cast<size_t>(slice)], ahead);
                                    }})[0];
            const double quiet = bytes[0] / t.quiet / 1e9, median = bytes[0] / t.median / 1e9;
            std::printf("{\"stream_prefetch\": %zu, \"quiet_gb_per_s\": %.2f, \"median_gb_per_s\": %.2f}\n", ahead, quiet,
                        median);
        }
    }

    // What is timed: one kind of kernels, format, number of rows and length of the caches.
    struct Case {
        lluda_context *context;
        int format, rows;
        int64_t length;
    };

    // Decode steps as the engine runs them: all layers in calls of kLayersAtOnce, then the head, after `length`
    // positions of cache; each row is a sequence of its own. Traffic counts weights and cache.
    class Steps {
    public:
        Steps(Bench &bench, const Case &of) : bench_(bench), of_(of), layers_(bench.layers.size()) {
            const Shapes &s = bench.s;
            const int64_t half = s.head_dim / 2, row_cache = s.kv_heads * (of.length + 1) * s.head_dim;
            norm_.assign(static_cast<size_t>(s.hidden), 1.0f);
            cos_.assign(static_cast<size_t>(of.rows * half), 0.6f);
            sin_.assign(static_cast<size_t>(of.rows * half), 0.8f);
            x_.assign(static_cast<size_t>(of.rows * s.hidden), 0.5f);
            logits_.resize(static_cast<size_t>(of.rows * s.vocabulary));
            cache_.assign(layers_ * static_cast<size_t>(2 * of.rows * row_cache), 0x3c00);
            attention_.reserve(layers_), mlp_.reserve(layers_);
            uint16_t *keys = cache_.data();
            for (const Layer &l : bench.layers) {
                add_layer(l);
                for (int r = 0; r < of.rows; ++r, keys += 2 * row_cache)
                    places_.push_back({keys, keys + row_cache, (of.length + 1) * s.head_dim, of.length + 1, of.length});
            }
        }

        static constexpr size_t kLayersAtOnce = 4;
        int slices() const { return static_cast<int>((layers_ + kLayersAtOnce - 1) / kLayersAtOnce + 1); }
        double traffic() const { return bench_.bytes[of_.format] + static_cast<double>(cache_.size()) * 2; }

        void run(int slice) {
            const Shapes &s = bench_.s;
            if (slice + 1 == slices()) {
                for (size_t i = 0; i < bench_.head.size(); ++i)
                    check(lluda_lm_head(of_.context, &bench_.head[i].in[of_.format], norm_.data(), 1e-6f, of_.rows,
                                        x_.data(), s.hidden, logits_.data(), s.vocabulary));
                return;
            }
            const size_t first = static_cast<size_t>(slice) * kLayersAtOnce;
            const size_t count = std::min(kLayersAtOnce, layers_ - first);
            check(lluda_decoder_layers(of_.context, stack_.data() + first, static_cast<int64_t>(count), of_.rows,
                                       x_.data(), s.hidden, cos_.data(), sin_.data(),
                                       places_.data() + first * static_cast<size_t>(of_.rows)));
        }

    private:
        void add_layer(const Layer &l) {
            const Shapes &s = bench_.s;
            auto pick = [&](const Matrix &m) { return &m.in[of_.format]; };
            lluda_attention a{};
            a.hidden = s.hidden, a.heads = s.heads, a.kv_heads = s.kv_heads, a.head_dim = s.head_dim;
            a.norm = norm_.data(), a.q_norm = a.k_norm = norm_.data(), a.norm_eps = a.qk_norm_eps = 1e-6f;
            a.q = pick(l.q), a.k = pick(l.k), a.v = pick(l.v), a.o = pick(l.o), a.cache_dtype = LLUDA_DTYPE_BF16;
            attention_.push_back(a);
            lluda_mlp m{};
            m.hidden = s.hidden, m.intermediate = s.intermediate, m.norm = norm_.data(), m.norm_eps = 1e-6f;
            m.gate = pick(l.gate), m.up = pick(l.up), m.down = pick(l.down);
            mlp_.push_back(m);
            stack_.push_back({&attention_.back(), &mlp_.back(), nullptr});
        }

        Bench &bench_;
        const Case of_;
        const size_t layers_;
        std::vector<float> norm_, cos_, sin_, x_, logits_;
        std::vector<uint16_t> cache_;
        std::vector<lluda_attention> attention_;
        std::vector<lluda_mlp> mlp_;
        std::vector<lluda_layer> stack_;
        std::vector<lluda_cache_row> places_;
    };

    // All cases in turn, slice by slice, so that what else the machine does meets all alike. One JSON object each.
    void decode(const std::vector<Case> &cases) {
        std::vector<Steps> steps;
        steps.reserve(cases.size());
        for (const Case &of : cases) steps.emplace_back(*this, of);
        std::vector<std::function<void(int)>> works;
        for (Steps &each : steps) works.push_back([&each](int slice) { each.run(slice); });
        const std::vector<Times> times = measure(repeat, steps[0].slices(), works);
        for (size_t i = 0; i < cases.size(); ++i) {
            const Case &of = cases[i];
            std::printf("{\"kernels\": \"%s\", \"format\": \"%s\", \"rows\": %d, \"cache\": %lld, \"layers\": %zu, "
                        "\"quiet_ms\": %.3f, \"median_ms\": %.3f, \"quiet_gb_per_s\": %.2f, "
                        "\"median_tokens_per_s\": %.1f}\n",
                        lluda_context_isa(of.context), kNames[of.format], of.rows, static_cast<long long>(of.length),
                        layers.size(), times[i].quiet * 1e3, times[i].median * 1e3,
                        steps[i].traffic() / times[i].quiet / 1e9, of.rows / times[i].median);
        }
    }
};

// "1,2,4" or "amx,avx512".
std::vector<std::string> list_of(const std::string &text) {
    std::vector<std::string> parts(1);
    for (char c : text)
        if (c == ',')
            parts.emplace_back();
        else
            parts.back() += c;
    return parts;
}

std::vector<int> numbers_of(const std::string &text) {
    std::vector<int> numbers;
    for (const std::string &part : list_of(text)) numbers.push_back(std::atoi(part.c_str()));
    return numbers;
}

}  // namespace

int main(int argc, char **argv) {
    Bench bench;
    int layers = 28;
    std::vector<int> rows = {1, 2, 4, 8, 16}, formats = {0, 1, 2, 3}, caches = {160};
    std::vector<std::string> isas = {"auto"};
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        auto value = [&] { return i + 1 < argc ? argv[++i] : ""; };
        if (option == "--threads")
            bench.threads = std::atoi(value());
        else if (option == "--layers")
            layers = std::atoi(value());
        else if (option == "--repeat")
            bench.repeat = std::atoi(value());
        else if (option == "--isa")
            isas = list_of(value());
        else if (option == "--cpu-time")
            cpu_time = true;
        else if (option == "--small-pages")
            small_pages = true;
        else if (option == "--rows")
            rows = numbers_of(value());
        else if (option == "--formats")
            formats = numbers_of(value());
        else if (option == "--caches")
            caches = numbers_of(value());
    }
    std::vector<lluda_context *> contexts(isas.size());
    for (size_t i = 0; i < isas.size(); ++i)
        check(lluda_context_create(isas[i].c_str(), bench.threads, &contexts[i]));
    made_context = contexts[0];
    bench.build(layers);
    bench.bandwidth();
    std::vector<Bench::Case> cases;
    for (int cache : caches)
        for (int n : rows)
            for (int format : formats)
                for (lluda_context *each : contexts) cases.push_back({each, format, n, cache});
    bench.decode(cases);
    bench.bandwidth();
    return 0;
}
