// How near the kernels come to the machine's streaming bandwidth, on Qwen3-0.6B's shapes (or fewer layers).
//
//   decode_bench [--threads N] [--layers N] [--rows 1,2,4,8,16] [--formats 0,1,2,3] [--repeat N] [--isa NAME]
//                [--small-pages] [--cpu-time]
//
// Prints one line per measurement: what, time, GB/s of weight bytes and their share of the streaming bandwidth measured
// in the same run, quiet against quiet and median against median (see Times).
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

Times measure(int repeat, int slices, const std::function<void(int)> &work) {
    std::vector<double> best(static_cast<size_t>(slices), 1e9), passes;
    for (int i = 0; i < repeat; ++i) {
        double pass = 0;
        for (int slice = 0; slice < slices; ++slice) {
            const double taken = seconds_of([&] { work(slice); });
            pass += taken;
            best[static_cast<size_t>(slice)] = std::min(best[static_cast<size_t>(slice)], taken);
        }
        passes.push_back(pass);
    }
    std::sort(passes.begin(), passes.end());
    return {std::accumulate(best.begin(), best.end(), 0.0), passes[passes.size() / 2]};
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
    double bandwidth_quiet = 0, bandwidth_median = 0;
    int repeat = 9, threads = 2;
    std::string isa = "auto";

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
            std::printf("%s %.3f GB (%.4f)\n", kNames[format], bytes[format] / 1e9, bytes[format] / bytes[0]);
    }

    void bandwidth() {
        lluda::ThreadPool pool(threads);
        for (size_t ahead : {size_t{0}, size_t{1024}, size_t{2048}, size_t{4096}}) {
            const Times t = measure(repeat, static_cast<int>(slices.size()),
                                    [&](int slice) { stream(pool, slices[static_cast<size_t>(slice)], ahead); });
            const double quiet = bytes[0] / t.quiet / 1e9, median = bytes[0] / t.median / 1e9;
            std::printf("stream, prefetch %4zu: quiet %6.2f GB/s, median %6.2f\n", ahead, quiet, median);
            bandwidth_quiet = std::max(bandwidth_quiet, quiet);
            bandwidth_median = std::max(bandwidth_median, median);
        }
    }

    void report(const std::string &what, int rows, Times t, double traffic) {
        std::printf(
            "%-26s rows %2d: quiet %7.2f ms %6.2f GB/s share %5.1f %% | median %7.2f ms %6.2f GB/s share %5.1f %% "
            "| %6.1f tok/s quiet\n",
            what.c_str(), rows, t.quiet * 1e3, traffic / t.quiet / 1e9, 100 * traffic / t.quiet / 1e9 / bandwidth_quiet,
            t.median * 1e3, traffic / t.median / 1e9, 100 * traffic / t.median / 1e9 / bandwidth_median,
            rows / t.quiet);
        std::fflush(stdout);
    }

    // Every matrix once, one call each.
    void products(int format, int rows) {
        std::vector<uint16_t> x(static_cast<size_t>(16 * s.intermediate), 0x3f80);
        std::vector<float> y(static_cast<size_t>(16 * s.vocabulary));
        const Times t = measure(repeat, static_cast<int>(slices.size()), [&](int slice) {
            for (const Matrix &m : slices[static_cast<size_t>(slice)]) {
                const lluda_weight &w = m.in[format];
                check(lluda_linear(context(), &w, rows, x.data(), w.in_features, y.data(), LLUDA_DTYPE_F32, w.out_features));
            }
        });
        report(std::string("products ") + kNames[format], rows, t, bytes[format]);
    }

    // A decode step as the engine runs it: two block calls a layer and the head, after `length` positions of cache,
    // each row a sequence of its own. Traffic counts weights and cache.
    void decode(int format, int rows, int64_t length) {
        const int64_t half = s.head_dim / 2, row_cache = s.kv_heads * (length + 1) * s.head_dim;
        const std::vector<float> hidden_norm(static_cast<size_t>(s.hidden), 1.0f),
            head_norm(static_cast<size_t>(s.head_dim), 1.0f);
        const std::vector<float> cos(static_cast<size_t>(rows * half), 0.6f),
            sin(static_cast<size_t>(rows * half), 0.8f);
        std::vector<float> x(static_cast<size_t>(rows * s.hidden), 0.5f),
            logits(static_cast<size_t>(rows * s.vocabulary));
        std::vector<uint16_t> cache(layers.size() * static_cast<size_t>(2 * rows * row_cache), 0x3c00);
        auto pick = [&](const Matrix &m) { return &m.in[format]; };
        auto layer = [&](size_t index) {
            const Layer &l = layers[index];
            lluda_attention a{};
            a.hidden = s.hidden, a.heads = s.heads, a.kv_heads = s.kv_heads, a.head_dim = s.head_dim;
            a.norm = hidden_norm.data(), a.q_norm = a.k_norm = head_norm.data(), a.norm_eps = a.qk_norm_eps = 1e-6f;
            a.q = pick(l.q), a.k = pick(l.k), a.v = pick(l.v), a.o = pick(l.o), a.cache_dtype = LLUDA_DTYPE_BF16;
            std::vector<lluda_cache_row> places;
            for (int r = 0; r < rows; ++r) {
                uint16_t *keys = cache.data() + (index * static_cast<size_t>(rows) + static_cast<size_t>(r)) * 2 *
                                                    static_cast<size_t>(row_cache);
                places.push_back({keys, keys + row_cache, (length + 1) * s.head_dim, length + 1, length});
            }
            check(lluda_attention_block(context(), &a, rows, x.data(), s.hidden, cos.data(), sin.data(), places.data()));
            lluda_mlp m{};
            m.hidden = s.hidden, m.intermediate = s.intermediate, m.norm = hidden_norm.data(), m.norm_eps = 1e-6f;
            m.gate = pick(l.gate), m.up = pick(l.up), m.down = pick(l.down);
            check(lluda_mlp_block(context(), &m, rows, x.data(), s.hidden));
        };
        auto slice = [&](int index) {
            if (index < static_cast<int>(layers.size())) return layer(static_cast<size_t>(index));
            check(lluda_lm_head(context(), pick(head[static_cast<size_t>(index) - layers.size()]), hidden_norm.data(), 1e-6f, rows,
                                x.data(), s.hidden, logits.data(), s.vocabulary));
        };
        const double traffic = bytes[format] + static_cast<double>(cache.size()) * 2;
        report(std::string("decode ") + kNames[format] + " @" + std::to_string(length), rows,
               measure(repeat, static_cast<int>(slices.size()), slice), traffic);
    }
};

}  // namespace

int main(int argc, char **argv) {
    Bench bench;
    int layers = 28;
    std::vector<int> rows = {1, 2, 4, 8, 16}, formats = {0, 1, 2, 3};
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
            bench.isa = value();
        else if (option == "--cpu-time")
            cpu_time = true;
        else if (option == "--small-pages")
            small_pages = true;
        else if (option == "--rows" || option == "--formats") {
            std::vector<int> &list = option == "--rows" ? rows : formats;
            list.clear();
            for (const char *p = value(); *p;) {
                list.push_back(static_cast<int>(std::strtol(p, const_cast<char **>(&p), 10)));
                if (*p == ',') ++p;
            }
        }
    }
    check(lluda_context_create(bench.isa.c_str(), bench.threads, &made_context));
    std::printf("kernels %s, threads %d, %s pages\n", lluda_context_isa(context()), lluda_context_threads(context()),
                small_pages ? "small" : "huge");
    bench.build(layers);
    bench.bandwidth();
    for (int n : rows)
        for (int format : formats) bench.products(format, n);
    for (int64_t context : {int64_t{160}, int64_t{4000}})
        for (int n : rows)
            if (context < 1000 || n <= 2)
                for (int format : formats) bench.decode(format, n, context);
    bench.bandwidth();
    return 0;
}
