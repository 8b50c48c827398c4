// Encoder blocks against float64.
#include <algorithm>
#include <cmath>
#include <memory>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

using Row = std::vector<double>;

struct EncoderCase {
    std::int64_t hidden, heads, head_dim, intermediate;
    std::vector<std::int64_t> lengths;
    bool fused, tanh, rotary;
};

Row layer_normed(const Row &x, const std::vector<float> &weight, const std::vector<float> &bias, double eps) {
    double mean = 0, variance = 0;
    for (double v : x) mean += v / static_cast<double>(x.size());
    for (double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Row out;
    for (std::size_t i = 0; i < x.size(); ++i)
        out.push_back(rounded((x[i] - mean) / std::sqrt(variance + eps) * weight[i] + bias[i]));
    return out;
}

double gelu(double x, bool tanh) {
    if (!tanh) return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

void turn(double *head, std::int64_t dim, const float *cos, const float *sin) {
    for (std::int64_t i = 0; i < dim / 2; ++i) {
        const double a = head[i], b = head[i + dim / 2];
        head[i] = a * cos[i] - b * sin[i];
        head[i + dim / 2] = b * cos[i] + a * sin[i];
    }
}

class Encoder {
public:
    Encoder(const EncoderCase &c, int format)
        : c_(c),
          random_(static_cast<std::uint64_t>(c.hidden * 31 + c.intermediate)),
          width_(c.heads * c.head_dim),
          out_(random_, c.hidden, width_, 0.1f, true),
          fc1_(random_, c.intermediate, c.hidden, 0.1f, true),
          fc2_(random_, c.hidden, c.intermediate, 0.1f, true) {
        const int parts = c.fused ? 1 : 3;
        for (int i = 0; i < parts; ++i) {
            qkv_.push_back(std::make_unique<TestWeight>(random_, width_ * 3 / parts, c.hidden, 0.1f, true));
            descriptors_.push_back(*qkv_.back()->in(format));
        }
        for (auto *norm : {&norm1_, &bias1_, &norm2_, &bias2_}) *norm = random_.normals(c.hidden, 0.3f);
        for (float &w : norm1_) w += 1;
        for (float &w : norm2_) w += 1;
        for (std::int64_t length : c.lengths) rows_ += length;
        x_ = random_.normals(rows_ * c.hidden, 1.0f);
        const auto angles = random_.normals(rows_ * c.head_dim / 2, 2.0f);
        for (float angle : angles) cos_.push_back(std::cos(angle)), sin_.push_back(std::sin(angle));
        block_.hidden = c.hidden, block_.heads = c.heads, block_.head_dim = c.head_dim;
        block_.intermediate = c.intermediate, block_.norm1 = norm1_.data(), block_.norm1_bias = bias1_.data();
        block_.norm2 = norm2_.data(), block_.norm2_bias = bias2_.data(), block_.qkv = descriptors_.data();
        block_.qkv_count = parts, block_.out = out_.in(format), block_.fc1 = fc1_.in(format);
        block_.fc2 = fc2_.in(format), block_.norm1_eps = block_.norm2_eps = 1e-5f;
        block_.gelu = c.tanh ? LLUDA_GELU_TANH : LLUDA_GELU_ERF;
    }

    std::vector<double> native(int threads) {
        use_threads(threads);
        std::vector<float> y = x_;
        check_ok(lluda_encoder_block(context(), &block_, rows_, y.data(), c_.hidden, c_.rotary ? cos_.data() : nullptr,
                                     c_.rotary ? sin_.data() : nullptr, c_.lengths.data(),
                                     static_cast<std::int64_t>(c_.lengths.size())));
        std::vector<double> added;
        for (std::size_t i = 0; i < y.size(); ++i) added.push_back(static_cast<double>(y[i]) - x_[i]);
        return added;
    }

    std::vector<double> truth() const {
        std::vector<double> added;
        std::int64_t first = 0;
        for (std::int64_t length : c_.lengths) {
            std::vector<Row> qkv;
            for (std::int64_t r = first; r < first + length; ++r) qkv.push_back(projected(r));
            for (std::int64_t r = 0; r < length; ++r) {
                Row x = row(first + r);
                const Row before = x, attended = out_.times(attend(qkv, r));
                for (std::size_t i = 0; i < x.size(); ++i) x[i] += attended[i];
                Row inner = fc1_.times(layer_normed(x, norm2_, bias2_, 1e-5));
                for (double &v : inner) v = rounded(gelu(v, c_.tanh));
                const Row more = fc2_.times(inner);
                for (std::size_t i = 0; i < x.size(); ++i) added.push_back(x[i] + more[i] - before[i]);
            }
            first += length;
        }
        return added;
    }

    lluda_encoder block_{};
    std::int64_t rows_ = 0;
    std::vector<float> x_;

private:
    Row row(std::int64_t r) const { return {x_.begin() + r * c_.hidden, x_.begin() + (r + 1) * c_.hidden}; }

    Row projected(std::int64_t r) const {
        const Row normed = layer_normed(row(r), norm1_, bias1_, 1e-5);
        Row all;
        for (const auto &weight : qkv_) {
            const Row part = weight->times(normed);
            all.insert(all.end(), part.begin(), part.end());
        }
        const std::int64_t at = r * c_.head_dim / 2;
        for (std::int64_t head = 0; c_.rotary && head < 2 * c_.heads; ++head)
            turn(all.data() + head * c_.head_dim, c_.head_dim, cos_.data() + at, sin_.data() + at);
        for (double &v : all) v = rounded(v);
        return all;
    }

    Row attend(const std::vector<Row> &qkv, std::int64_t r) const {
        Row out;
        const auto dim = static_cast<std::size_t>(c_.head_dim), width = static_cast<std::size_t>(width_);
        for (std::size_t head = 0; head < static_cast<std::size_t>(c_.heads); ++head) {
            Row scores;
            for (const Row &other : qkv) {
                double score = 0;
                for (std::size_t i = 0; i < dim; ++i)
                    score += qkv[static_cast<std::size_t>(r)][head * dim + i] * other[width + head * dim + i];
                scores.push_back(score / std::sqrt(static_cast<double>(dim)));
            }
            const double top = *std::max_element(scores.begin(), scores.end());
            double total = 0;
            for (double &s : scores) total += s = std::exp(s - top);
            for (std::size_t i = 0; i < dim; ++i) {
                double v = 0;
                for (std::size_t p = 0; p < qkv.size(); ++p) v += scores[p] * qkv[p][2 * width + head * dim + i];
                out.push_back(rounded(v / total));
            }
        }
        return out;
    }

    const EncoderCase &c_;
    Random random_;
    const std::int64_t width_;
    TestWeight out_, fc1_, fc2_;
    std::vector<std::unique_ptr<TestWeight>> qkv_;
    std::vector<lluda_weight> descriptors_;
    std::vector<float> norm1_, bias1_, norm2_, bias2_, cos_, sin_;
};

TEST(encoder_blocks) {
    const EncoderCase cases[] = {{64, 4, 16, 96, {1}, false, false, false},
                                 {64, 4, 16, 96, {17, 3, 40}, true, true, true},
                                 {75, 3, 10, 101, {5, 66, 1}, false, true, true},
                                 {40, 1, 72, 50, {70}, true, false, true},
                                 {24, 2, 6, 30, {500, 20}, false, false, false}};
    for (const EncoderCase &c : cases)
        for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
            Encoder encoder(c, format);
            const auto one = encoder.native(1);
            expect_close(one, encoder.truth(), 4e-3, "encoder block");
            if (one != encoder.native(3)) expect(false, "threads change the result");
        }
}

TEST(encoder_blocks_refuse) {
    const EncoderCase c{16, 2, 8, 24, {3, 2}, false, false, false};
    Encoder encoder(c, LLUDA_FORMAT_BF16);
    const auto call = [&](const lluda_encoder &block, std::int64_t rows, std::vector<std::int64_t> lengths) {
        return lluda_encoder_block(context(), &block, rows, encoder.x_.data(), c.hidden, nullptr, nullptr, lengths.data(),
                                   static_cast<std::int64_t>(lengths.size()));
    };
    check_ok(call(encoder.block_, 0, {}));
    check_code(call(encoder.block_, 5, {3}), LLUDA_BAD_ARGUMENT, "runs too short");
    check_code(call(encoder.block_, 5, {3, 3}), LLUDA_BAD_ARGUMENT, "runs too long");
    check_code(call(encoder.block_, 5, {5, 0}), LLUDA_BAD_ARGUMENT, "an empty run");
    lluda_encoder wrong = encoder.block_;
    wrong.head_dim = 7;
    check_code(call(wrong, 5, {3, 2}), LLUDA_BAD_ARGUMENT, "odd head_dim");
    wrong = encoder.block_, wrong.qkv_count = 2;
    check_code(call(wrong, 5, {3, 2}), LLUDA_BAD_ARGUMENT, "qkv_count");
    wrong = encoder.block_, wrong.norm2_bias = nullptr;
    check_code(call(wrong, 5, {3, 2}), LLUDA_BAD_ARGUMENT, "norm bias");
}

}  // namespace
