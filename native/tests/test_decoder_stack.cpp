// Whole stacks against the same blocks called one by one: the same numbers, to the last bit.
#include <algorithm>
#include <memory>
#include <utility>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

constexpr std::int64_t kHidden = 32, kHeads = 4, kKeyHeads = 2, kHeadDim = 10, kInner = 64, kExperts = 5, kLayers = 3;
constexpr std::int64_t kCapacity = 12;

std::vector<float> norm_weights(Random &random, std::int64_t width) {
    auto weights = random.normals(width, 0.3f);
    for (float &w : weights) w += 1.0f;
    return weights;
}

// Three layers, the middle one a mixture with a shared expert.
class Stack {
public:
    Stack(Random &random, int format) : random_(random), format_(format), norm_(norm_weights(random, kHidden)) {
        for (std::int64_t i = 0; i < kLayers; ++i) {
            attention_[i].hidden = kHidden, attention_[i].heads = kHeads, attention_[i].kv_heads = kKeyHeads;
            attention_[i].head_dim = kHeadDim, attention_[i].norm = norm_.data(), attention_[i].norm_eps = 1e-6f;
            attention_[i].q = weight(kHeads * kHeadDim, kHidden);
            attention_[i].k = weight(kKeyHeads * kHeadDim, kHidden);
            attention_[i].v = weight(kKeyHeads * kHeadDim, kHidden);
            attention_[i].o = weight(kHidden, kHeads * kHeadDim);
            attention_[i].cache_dtype = LLUDA_DTYPE_BF16;
            mlp_[i].hidden = kHidden, mlp_[i].intermediate = kInner, mlp_[i].norm = norm_.data();
            mlp_[i].gate = weight(kInner, kHidden), mlp_[i].up = weight(kInner, kHidden);
            mlp_[i].down = weight(kHidden, kInner), mlp_[i].norm_eps = 1e-6f;
            layers[i] = {&attention_[i], &mlp_[i], nullptr};
        }
        make_mixture();
        layers[1].mlp = nullptr, layers[1].moe = &moe_;
    }

    // In the format, or BF16 where that cannot be.
    const lluda_weight *weight(std::int64_t out, std::int64_t in) {
        if (format_ >= LLUDA_FORMAT_Q8_0 && in % 32 == 0) {
            q8_weights_.push_back(std::make_unique<Q8TestWeight>(random_, out, in, false, 1e-4f));
            return q8_weights_.back()->in(format_);
        }
        weights_.push_back(std::make_unique<TestWeight>(random_, out, in, 0.2f));
        return weights_.back()->in(format_ == LLUDA_FORMAT_PACKED_BF16 ? format_ : LLUDA_FORMAT_BF16);
    }

    // What the blocks do one by one; cache [layers][rows].
    void one_by_one(std::int64_t rows, float *x, const float *cos, const float *sin, const lluda_cache_row *cache) {
        for (const lluda_layer &layer : layers) {
            check_ok(lluda_attention_block(context(), layer.attention, rows, x, kHidden, cos, sin, cache));
            check_ok(layer.mlp ? lluda_mlp_block(context(), layer.mlp, rows, x, kHidden)
                               : lluda_moe_block(context(), layer.moe, rows, x, kHidden, nullptr));
            cache += rows;
        }
    }

    lluda_layer layers[kLayers];

private:
    void make_mixture() {
        for (std::int64_t e = 0; e < kExperts; ++e) {
            gate_.push_back(*weight(24, kHidden)), up_.push_back(*weight(24, kHidden));
            down_.push_back(*weight(kHidden, 24));
        }
        router_ = random_.normals(kExperts * kHidden, 0.3f);
        moe_.hidden = kHidden, moe_.experts = kExperts, moe_.intermediate = 24, moe_.shared_intermediate = 30;
        moe_.top_k = 2, moe_.norm = norm_.data(), moe_.router = router_.data(), moe_.norm_eps = 1e-6f;
        moe_.gate = gate_.data(), moe_.up = up_.data(), moe_.down = down_.data();
        moe_.shared_gate = weight(30, kHidden), moe_.shared_up = weight(30, kHidden);
        moe_.shared_down = weight(kHidden, 30);
    }

    Random &random_;
    const int format_;
    std::vector<float> norm_, router_;
    std::vector<std::unique_ptr<TestWeight>> weights_;
    std::vector<std::unique_ptr<Q8TestWeight>> q8_weights_;
    std::vector<lluda_weight> gate_, up_, down_;
    lluda_attention attention_[kLayers] = {};
    lluda_mlp mlp_[kLayers] = {};
    lluda_moe moe_{};
};

struct Cache {
    std::vector<std::uint16_t> keys = std::vector<std::uint16_t>(kLayers * kKeyHeads * kCapacity * kHeadDim);
    std::vector<std::uint16_t> values = keys;

    // Positions 0 .. rows-1 of each layer: [layers][rows].
    std::vector<lluda_cache_row> rows(std::int64_t count) {
        std::vector<lluda_cache_row> all;
        for (std::int64_t layer = 0; layer < kLayers; ++layer)
            for (std::int64_t position = 0; position < count; ++position) {
                const std::int64_t at = layer * kKeyHeads * kCapacity * kHeadDim;
                all.push_back({keys.data() + at, values.data() + at, kCapacity * kHeadDim, kCapacity, position});
            }
        return all;
    }
};

constexpr std::int64_t kPasses = 5, kCodes = 9, kHalf = kHeadDim / 2;

// What code a pass of a sequence takes here.
std::int64_t code_of(std::int64_t pass, std::int64_t sequence) { return (5 * pass + 3 * sequence + 2) % kCodes; }

// A code predictor over a stack, called for some sequences at once, whose numbers are made of their index alone.
class Predictor {
public:
    Predictor(Random &random, int format) : stack(random, format), norm(norm_weights(random, kHidden)) {
        for (std::int64_t i = 0; i < kPasses; ++i) {
            heads.push_back(*stack.weight(kCodes, kHidden));
            embeddings.push_back(*stack.weight(kCodes, kHidden));
        }
        cos = random.normals((kPasses + 1) * kHalf, 0.7f);
        sin = random.normals((kPasses + 1) * kHalf, 0.7f);
        p_.layer_count = kLayers, p_.passes = kPasses, p_.layers = stack.layers, p_.norm = norm.data();
        p_.heads = heads.data(), p_.embeddings = embeddings.data(), p_.norm_eps = 1e-6f;
    }

    // Rows of positions 0 and 1.
    static std::vector<float> first_rows(std::int64_t sequence) {
        return Random(100 + static_cast<std::uint64_t>(sequence)).normals(2 * kHidden, 1.0f);
    }

    // Logits [passes, sequences, codes] and totals.
    int predict(const std::vector<std::int64_t> &sequences) {
        const std::size_t count = sequences.size();
        std::vector<float> x(2 * count * kHidden), angles[2];
        std::vector<Cache> caches(count);
        std::vector<lluda_cache_row> places;
        for (std::size_t s = 0; s < count; ++s) {
            const auto rows = first_rows(sequences[s]);
            for (std::size_t position = 0; position < 2; ++position)
                std::copy_n(rows.data() + position * kHidden, kHidden, x.data() + (position * count + s) * kHidden);
        }
        for (std::int64_t layer = 0; layer < kLayers; ++layer)
            for (std::int64_t position = 0; position <= kPasses; ++position)
                for (Cache &cache : caches)
                    places.push_back(cache.rows(kPasses + 1)[static_cast<std::size_t>(layer * (kPasses + 1) + position)]);
        for (std::int64_t position = 0; position <= kPasses; ++position)
            for (std::size_t s = 0; s < count; ++s)
                for (std::int64_t i = 0; i < kHalf; ++i) {
                    angles[0].push_back(cos[static_cast<std::size_t>(position * kHalf + i)]);
                    angles[1].push_back(sin[static_cast<std::size_t>(position * kHalf + i)]);
                }
        logits.assign(kPasses * count * kCodes, 0.0f);
        total.assign(count * kHidden, 0.5f);
        codes.assign(kPasses * count, -1);
        seen.clear();
        sequences_ = sequences;
        return lluda_predict_codes(context(), &p_, static_cast<std::int64_t>(count), x.data(), angles[0].data(),
                                   angles[1].data(), places.data(), choose, this, logits.data(), codes.data(),
                                   total.data());
    }

    Stack stack;
    std::vector<float> norm, cos, sin;
    std::vector<lluda_weight> heads, embeddings;
    std::vector<float> logits, total;
    std::vector<std::int64_t> codes;
    std::vector<float> seen;  // one of each pass's logits, when it was chosen from
    std::int64_t stop_at = -1, wrong_at = -1;

private:
    static int choose(void *chooser, std::int64_t pass) {
        auto &self = *static_cast<Predictor *>(chooser);
        const auto count = static_cast<std::int64_t>(self.sequences_.size());
        self.seen.push_back(self.logits[static_cast<std::size_t>(pass * count * kCodes + 4)]);
        for (std::int64_t s = 0; s < count; ++s)
            self.codes[static_cast<std::size_t>(pass * count + s)] =
                pass == self.wrong_at ? kCodes : code_of(pass, self.sequences_[static_cast<std::size_t>(s)]);
        return pass == self.stop_at;
    }

    lluda_code_predictor p_{};
    std::vector<std::int64_t> sequences_;
};

TEST(a_stack_is_its_blocks) {
    for (int threads : {1, 2, 3})
        for (int format = LLUDA_FORMAT_BF16; format <= LLUDA_FORMAT_Q8_0_ROWS; ++format)
            for (std::int64_t rows : {1, 2, 7}) {
                use_threads(threads);
                Random random(static_cast<std::uint64_t>(41 + rows));
                Stack stack(random, format);
                const auto x = random.normals(rows * kHidden, 1.0f), cos = random.normals(rows * kHeadDim / 2, 0.7f),
                           sin = random.normals(rows * kHeadDim / 2, 0.7f);
                Cache one, other;
                auto expected = x, found = x;
                stack.one_by_one(rows, expected.data(), cos.data(), sin.data(), one.rows(rows).data());
                check_ok(lluda_decoder_layers(context(), stack.layers, kLayers, rows, found.data(), kHidden, cos.data(),
                                              sin.data(), other.rows(rows).data()));
                expect(found == expected && other.keys == one.keys && other.values == one.values, "a stack differs");
            }
}

// Logits [passes, codes] and the total of one sequence, block by block.
std::pair<std::vector<float>, std::vector<float>> pass_after_pass(Predictor &p, std::int64_t sequence) {
    Cache cache;
    auto x = Predictor::first_rows(sequence);
    std::vector<float> logits(kPasses * kCodes), total(kHidden, 0.5f);
    const auto all = cache.rows(kPasses + 1);
    for (std::int64_t pass = 0; pass < kPasses; ++pass) {
        const std::int64_t rows = pass ? 1 : 2, begin = pass ? pass + 1 : 0;
        std::vector<lluda_cache_row> places;
        for (std::int64_t layer = 0; layer < kLayers; ++layer)
            for (std::int64_t r = 0; r < rows; ++r)
                places.push_back(all[static_cast<std::size_t>(layer * (kPasses + 1) + begin + r)]);
        p.stack.one_by_one(rows, x.data(), p.cos.data() + begin * kHalf, p.sin.data() + begin * kHalf, places.data());
        check_ok(lluda_lm_head(context(), &p.heads[static_cast<std::size_t>(pass)], p.norm.data(), 1e-6f, 1,
                               x.data() + (rows - 1) * kHidden, kHidden, logits.data() + pass * kCodes, kCodes));
        const std::int64_t code = code_of(pass, sequence);
        check_ok(lluda_embedding(context(), &p.embeddings[static_cast<std::size_t>(pass)], 1, &code, x.data(), kHidden));
        for (std::size_t i = 0; i < kHidden; ++i) total[i] += x[i];
    }
    return {logits, total};
}

TEST(predicted_codes_are_those_of_pass_after_pass) {
    for (int threads : {1, 2, 3})
        for (int format = LLUDA_FORMAT_BF16; format <= LLUDA_FORMAT_Q8_0_ROWS; ++format) {
            use_threads(threads);
            Random random(47);
            Predictor p(random, format);
            const auto [logits, total] = pass_after_pass(p, 0);
            check_ok(p.predict({0}));
            expect(p.logits == logits && p.total == total, "the passes of a frame differ");
            for (std::int64_t pass = 0; pass < kPasses; ++pass)
                expect(p.seen[static_cast<std::size_t>(pass)] == logits[static_cast<std::size_t>(pass * kCodes + 4)],
                       "the choice saw other logits");
        }
}

TEST(codes_of_sequences_together_are_those_of_each_alone) {
    for (int threads : {1, 3})
        for (int format = LLUDA_FORMAT_BF16; format <= LLUDA_FORMAT_Q8_0_ROWS; ++format) {
            use_threads(threads);
            Random random(59);
            Predictor p(random, format);
            const std::vector<std::int64_t> sequences = {3, 0, 6, 1, 7, 2, 5, 4};
            const std::size_t count = sequences.size();
            check_ok(p.predict(sequences));
            const auto logits = p.logits, total = p.total;
            for (std::size_t s = 0; s < count; ++s) {
                check_ok(p.predict({sequences[s]}));
                expect(std::equal(p.total.begin(), p.total.end(), total.begin() + s * kHidden), "a total differs");
                for (std::size_t pass = 0; pass < kPasses; ++pass)
                    expect(std::equal(p.logits.begin() + pass * kCodes, p.logits.begin() + (pass + 1) * kCodes,
                                      logits.begin() + (pass * count + s) * kCodes),
                           "a sequence's logits depend on the others");
            }
        }
}

TEST(a_frame_ends_where_its_choice_does) {
    Random random(71);
    Predictor p(random, LLUDA_FORMAT_BF16);
    check_ok(p.predict({}));
    p.stop_at = 2;
    check_code(p.predict({0, 1}), LLUDA_STOPPED, "a choice that ends the frames");
    expect_equal(p.seen.size(), 3, "passes before the end");
    p.stop_at = -1, p.wrong_at = 1;
    check_code(p.predict({0, 1}), LLUDA_STOPPED, "what is no code");
    check_code(p.predict({0, 1, 2, 3, 4, 5, 6, 7, 8}), LLUDA_BAD_ARGUMENT, "more rows than a step has");
}

TEST(bad_stacks_are_refused) {
    Random random(53);
    Stack stack(random, LLUDA_FORMAT_BF16);
    Cache cache;
    const auto places = cache.rows(1);
    std::vector<float> x(20 * kHidden), angles(20 * kHeadDim / 2);
    const auto run = [&](std::int64_t count, std::int64_t rows) {
        return lluda_decoder_layers(context(), stack.layers, count, rows, x.data(), kHidden, angles.data(), angles.data(),
                                    places.data());
    };
    check_ok(run(kLayers, 0));
    check_code(run(0, 1), LLUDA_BAD_ARGUMENT, "no layers");
    check_code(run(kLayers, 17), LLUDA_BAD_ARGUMENT, "many rows");
    stack.layers[2].moe = stack.layers[1].moe;
    check_code(run(kLayers, 1), LLUDA_BAD_ARGUMENT, "two feed-forwards");
    stack.layers[2].moe = nullptr, stack.layers[2].mlp = nullptr;
    check_code(run(kLayers, 1), LLUDA_BAD_ARGUMENT, "no feed-forward");
    check_ok(run(2, 1));
    lluda_code_predictor p{};
    p.layer_count = 1, p.layers = stack.layers, p.norm = x.data();
    check_code(lluda_predict_codes(context(), &p, 1, x.data(), angles.data(), angles.data(), places.data(), nullptr, nullptr,
                                   x.data(), nullptr, x.data()),
               LLUDA_BAD_ARGUMENT, "no passes");
}

}  // namespace
