// lluda_decoder_layers and lluda_predict_codes: whole stacks of layers in one call, all threads awake throughout.
#include <algorithm>
#include <new>
#include <vector>

#include "blocks.hpp"

using namespace lluda;

namespace {

void check_layer(const lluda_layer &layer, int64_t hidden) {
    check_attention(layer.attention);
    require((layer.mlp != nullptr) != (layer.moe != nullptr), "a layer must have either an mlp or a moe");
    if (layer.mlp) check_mlp(layer.mlp);
    if (layer.moe) check_moe(layer.moe);
    const int64_t inner = layer.mlp ? layer.mlp->hidden : layer.moe->hidden;
    require(layer.attention->hidden == hidden, "a layer's hidden", layer.attention->hidden, "that of the first");
    require(inner == hidden, "a feed-forward's hidden", inner, "that of its attention");
}

void check_layers(const lluda_layer *layers, int64_t count) {
    require_size("count", count);
    require(layers, "layers must not be NULL");
    check_attention(layers[0].attention);
    for (int64_t i = 0; i < count; ++i) check_layer(layers[i], layers[0].attention->hidden);
}

// The rows of a step through all layers. Its jobs follow each other, so they share one piece of scratch memory.
class StackJob {
public:
    // rows.cache is that of the first layer; cache_stride is from one layer's to the next.
    StackJob(Session &session, const lluda_layer *layers, int64_t count, AttentionRows rows, int64_t cache_stride) {
        const Scratch::Mark start = session.scratch().mark();
        jobs_.reserve(2 * static_cast<std::size_t>(count));
        for (const lluda_layer *layer = layers; layer != layers + count; ++layer, rows.cache += cache_stride) {
            session.scratch().rewind(start);
            jobs_.push_back(attention_job(session, *layer->attention, rows));
            session.scratch().rewind(start);
            jobs_.push_back(layer->mlp ? mlp_job(session, *layer->mlp, rows.count, rows.x, rows.x_stride)
                                       : moe_job(session, *layer->moe, {rows.count, rows.x, rows.x_stride, nullptr}));
        }
        session.scratch().rewind(start);
    }

    void run(Lane &lane) {
        for (const auto &job : jobs_) {
            job->run(lane);
            lane.barrier();
        }
    }

private:
    std::vector<std::unique_ptr<BlockJob>> jobs_;
};

void check_predictor(const lluda_code_predictor *predictor) {
    require(predictor, "predictor must not be NULL");
    const lluda_code_predictor &p = *predictor;
    check_layers(p.layers, p.layer_count);
    require_size("passes", p.passes);
    require(p.passes < LLUDA_MOST, "passes", p.passes, "less than 2^31 - 1");
    require(p.norm && p.heads && p.embeddings, "norm, heads and embeddings must not be NULL");
    const int64_t hidden = p.layers[0].attention->hidden;
    for (int64_t i = 0; i < p.passes; ++i) {
        check_weight(p.heads + i, "of a head", p.heads[0].out_features, hidden);
        check_weight(p.embeddings + i, "of embeddings", p.heads[0].out_features, hidden);
    }
}

struct Frames {
    int64_t count;
    float *x;                // [2, count, hidden]; the next pass's rows in the first count
    const float *cos, *sin;  // [passes + 1, count, head_dim / 2]
    const lluda_cache_row *cache;
    lluda_choose choose;
    void *chooser;
    float *logits;
    int64_t *codes;
    float *total;
};

// All passes of some frames as one job: between them lane 0 chooses the codes and makes the next pass ready.
class FramesJob {
public:
    FramesJob(Session &session, const lluda_code_predictor &p, const Frames &frames)
        : session_(session),
          p_(p),
          f_(frames),
          hidden_(p.layers[0].attention->hidden),
          start_(session.scratch().mark()) {
        make_ready();
    }

    void operator()(Lane &lane) {
        for (int64_t pass = 0; pass < p_.passes && result_ == LLUDA_OK; ++pass) {
            layers_->run(lane);
            head_->run(lane);
            lane.barrier();
            if (lane.index == 0) finish_pass();
            lane.barrier();
        }
    }

    int result() const { return result_; }

private:
    int64_t codes() const { return p_.heads[0].out_features; }

    // Rows, angles and places of a position lie side by side for all frames, so that pass 0 has those of two positions.
    void make_ready() {
        const int64_t rows = (pass_ == 0 ? 2 : 1) * f_.count, first = pass_ == 0 ? 0 : (pass_ + 1) * f_.count;
        const lluda_attention &attention = *p_.layers[0].attention;
        const int64_t angles = first * (attention.head_dim / 2);
        session_.scratch().rewind(start_);
        layers_ = std::make_unique<StackJob>(
            session_, p_.layers, p_.layer_count,
            AttentionRows{rows, f_.x, hidden_, f_.cos + angles, f_.sin + angles, f_.cache + first},
            (p_.passes + 1) * f_.count);
        head_ = head_job(session_, {p_.heads[pass_], p_.norm, p_.norm_eps}, f_.count,
                         f_.x + (rows - f_.count) * hidden_, hidden_, f_.logits + pass_ * f_.count * codes(), codes());
    }

    // By lane 0, while the others wait. Nothing may be thrown across them.
    void finish_pass() noexcept {
        try {
            int64_t *chosen = f_.codes + pass_ * f_.count;
            if (f_.choose(f_.chooser, pass_) != 0 || !are_codes(chosen)) {
                result_ = LLUDA_STOPPED;
                return;
            }
            for (int64_t i = 0; i < f_.count; ++i) {
                float *row = f_.x + i * hidden_;
                widen_row(session_.kernels(), p_.embeddings[pass_], chosen[i], row);
                session_.kernels().add_scaled(f_.total + i * hidden_, row, nullptr, 1.0f, hidden_);
            }
            if (++pass_ < p_.passes) make_ready();
        } catch (...) {
            result_ = LLUDA_OUT_OF_MEMORY;
        }
    }

    bool are_codes(const int64_t *chosen) const {
        return std::all_of(chosen, chosen + f_.count, [&](int64_t code) { return code >= 0 && code < codes(); });
    }

    Session &session_;
    const lluda_code_predictor &p_;
    const Frames &f_;
    const int64_t hidden_;
    const Scratch::Mark start_;
    std::unique_ptr<StackJob> layers_;
    std::unique_ptr<BlockJob> head_;
    int64_t pass_ = 0;
    int result_ = LLUDA_OK;
};

}  // namespace

int lluda_decoder_layers(lluda_context *context, const lluda_layer *layers, int64_t count, int64_t rows, float *x,
                         int64_t x_stride, const float *cos, const float *sin, const lluda_cache_row *cache) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_layers(layers, count);
        check_rows(rows, x, x_stride, layers[0].attention->hidden);
        require(rows <= kFewRows, "rows", rows, "at most LLUDA_FEW_ROWS");
        if (rows == 0) return;
        require(cos && sin && cache, "cos, sin and cache must not be NULL");
        for (int64_t i = 0; i < count; ++i) check_cache(*layers[i].attention, rows, cache + i * rows);
        Session session(c);
        StackJob job(session, layers, count, {rows, x, x_stride, cos, sin, cache}, rows);
        session.run([&](Lane &lane) { job.run(lane); });
    });
}

int lluda_predict_codes(lluda_context *context, const lluda_code_predictor *predictor, int64_t count, float *x,
                        const float *cos, const float *sin, const lluda_cache_row *cache, lluda_choose choose,
                        void *chooser, float *logits, int64_t *codes, float *total) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_predictor(predictor);
        require(count >= 0 && 2 * count <= kFewRows, "count", count, "0 .. LLUDA_FEW_ROWS / 2");
        if (count == 0) return;
        require(x && cos && sin && choose && logits && codes && total, "an argument is NULL");
        const lluda_code_predictor &p = *predictor;
        const int64_t places = (p.passes + 1) * count;
        for (int64_t i = 0; i < p.layer_count; ++i)
            check_cache(*p.layers[i].attention, places, cache ? cache + i * places : nullptr);
        const Frames frames{count, x, cos, sin, cache, choose, chooser, logits, codes, total};
        Session session(c);
        FramesJob job(session, p, frames);
        session.run(job);
        if (job.result() == LLUDA_STOPPED) throw Failure{LLUDA_STOPPED, "the choice of a pass's codes ended the call"};
        if (job.result() != LLUDA_OK) throw std::bad_alloc();
    });
}
