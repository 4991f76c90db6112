#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "kernels/matmul/matmul.h"
#include "kernels/transpose/transpose.h"
#include "tensor/float16.h"

namespace drover {
namespace {

// Elements that one thread takes at a time; sums are made of the sums of such pieces, in order, so
// that they do not know of threads.
constexpr int64_t kPiece = 16384;

int64_t pieces(int64_t count) { return (count + kPiece - 1) / kPiece; }

// body(first, last) for pieces of [0, count).
void in_pieces(Context& context, int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  context.threads.run(pieces(count), [&](int64_t piece, int) {
    body(piece * kPiece, std::min((piece + 1) * kPiece, count));
  });
}

double sum_of_squares(const float* x, int64_t count) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t lane = 0; lane < 8; ++lane) {
      const double value = x[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (; i < count; ++i) lanes[0] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

// Matrices one behind the other, as second factors of products: in bf16, or as they are.
class Factors {
 public:
  Factors(Context& context, Precision precision, int64_t matrices)
      : context_(context),
        type_(precision == Precision::kBF16 ? DType::kBF16 : DType::kF32),
        matrices_(matrices) {}

  // From now on x itself, [matrices, rows, cols]; with f32 a view of it.
  void take(const float* x, int64_t rows, int64_t cols) {
    shape(rows, cols);
    data_ = reinterpret_cast<const std::byte*>(x);
    if (type_ == DType::kF32) return;
    const int64_t count = matrices_ * rows * cols;
    own_.reserve_discarding(static_cast<size_t>(matrices_ * bytes_));
    auto* to = reinterpret_cast<bf16*>(own_.data());
    in_pieces(context_, count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) to[i] = to_bf16(x[i]);
    });
    data_ = own_.data();
  }
  // From now on the transposes.
  void take_transposed(const float* x, int64_t rows, int64_t cols) {
    shape(cols, rows);
    own_.reserve_discarding(static_cast<size_t>(matrices_ * bytes_));
    for (int64_t i = 0; i < matrices_; ++i) {
      transpose(context_, {x + i * rows * cols, rows, cols, cols}, type_, own_.data() + i * bytes_);
    }
    data_ = own_.data();
  }
  WeightView operator[](int64_t i) const { return {data_ + i * bytes_, type_, rows_, cols_}; }

 private:
  void shape(int64_t rows, int64_t cols) {
    rows_ = rows;
    cols_ = cols;
    bytes_ = rows * row_bytes(type_, cols);
  }

  Context& context_;
  const DType type_;
  const int64_t matrices_;
  int64_t rows_ = 0, cols_ = 0, bytes_ = 0;  // of a matrix
  const std::byte* data_ = nullptr;
  AlignedArray<std::byte> own_;
};

}  // namespace

double clip_scale(double norm, double limit) {
  return limit > 0 && norm > limit ? limit / norm : 1.0;
}

void orthogonalize(Context& context, std::span<float> values, int64_t matrices, int64_t rows,
                   int64_t cols, Precision precision) {
  constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
  constexpr int kSteps = 5;
  const int64_t size = rows * cols;
  DROVER_CHECK(static_cast<int64_t>(values.size()) == matrices * size);
  // Matrices lie on their longer side: x x^T is then the smaller product.
  const bool turned = rows > cols;
  const int64_t m = std::min(rows, cols), n = std::max(rows, cols);
  AlignedArray<float> lying(turned ? values.size() : 0);
  float* const x = turned ? lying.data() : values.data();
  const auto turn = [&](const float* from, int64_t from_rows, int64_t from_cols, float* to) {
    for (int64_t i = 0; i < matrices; ++i) {
      transpose(context, {from + i * size, from_rows, from_cols, from_cols}, DType::kF32,
                reinterpret_cast<std::byte*>(to + i * size));
    }
  };
  if (turned) turn(values.data(), rows, cols, x);
  context.threads.run(matrices, [&](int64_t i, int) {
    const auto scale =
        static_cast<float>(1 / (std::sqrt(sum_of_squares(x + i * size, size)) + 1e-7));
    for (int64_t k = i * size; k < (i + 1) * size; ++k) x[k] *= scale;
  });

  const int64_t squares = matrices * m * m;
  AlignedArray<float> a(static_cast<size_t>(squares)), b(static_cast<size_t>(squares));
  Factors factors(context, precision, matrices);
  std::vector<MatmulJob> jobs(static_cast<size_t>(matrices));
  // out = left w^T, or out + left w^T, with w the factors.
  const auto multiply = [&](const float* left, int64_t left_cols, float* out, bool add) {
    for (int64_t i = 0; i < matrices; ++i) {
      MatmulJob& job = jobs[static_cast<size_t>(i)];
      job.w = factors[i];
      job.x = {left + i * m * left_cols, m, left_cols, left_cols};
      job.out = {out + i * m * job.w.rows, m, job.w.rows, job.w.rows};
      job.end.add = add;
      job.rounded = precision == Precision::kBF16;
    }
    matmul(context, jobs);
  };
  for (int step = 0; step < kSteps; ++step) {
    // a = x x^T
    factors.take(x, m, n);
    multiply(x, n, a.data(), /*add=*/false);
    // b = kB a + kC a a; a is its own transpose, but for rounding
    factors.take(a.data(), m, m);
    multiply(a.data(), m, b.data(), /*add=*/false);
    in_pieces(context, squares, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) b.data()[i] = kB * a.data()[i] + kC * b.data()[i];
    });
    // x = kA x + b x
    factors.take_transposed(x, m, n);
    in_pieces(context, matrices * size, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) x[i] *= kA;
    });
    multiply(b.data(), m, x, /*add=*/true);
  }
  if (turned) turn(x, cols, rows, values.data());
}

Optimizer::Optimizer(Context& context, std::span<Parameter* const> parameters,
                     const OptimizerOptions& options, Precision precision)
    : context_(context), options_(options), precision_(precision) {
  const auto zeros = [](int64_t count) {
    AlignedArray<float> out(static_cast<size_t>(count));
    std::fill(out.data(), out.data() + count, 0.0f);
    return out;
  };
  for (Parameter* parameter : parameters) {
    if (!parameter->taught) continue;
    Kept kept;
    kept.parameter = parameter;
    kept.muon = options_.muon && parameter->kind == Parameter::Kind::kMatrix;
    kept.first = zeros(parameter->size());
    if (!kept.muon) kept.second = zeros(parameter->size());
    kept_.push_back(std::move(kept));
  }
}

std::vector<NamedFloats> Optimizer::state() {
  std::vector<NamedFloats> out;
  for (Kept& kept : kept_) {
    const std::string& name = kept.parameter->name;
    out.push_back({name + (kept.muon ? ": momentum" : ": average"), kept.first.span()});
    if (!kept.muon) out.push_back({name + ": average of squares", kept.second.span()});
  }
  return out;
}

double Optimizer::gradient_norm() {
  double sum = 0;
  std::vector<double> parts;
  for (const Kept& kept : kept_) {
    const float* gradient = kept.parameter->gradient.data();
    parts.assign(static_cast<size_t>(pieces(kept.parameter->size())), 0);
    in_pieces(context_, kept.parameter->size(), [&](int64_t first, int64_t last) {
      parts[static_cast<size_t>(first / kPiece)] = sum_of_squares(gradient + first, last - first);
    });
    for (const double part : parts) sum += part;
  }
  return std::sqrt(sum);
}

void Optimizer::update(double rate_scale, double gradient_scale) {
  ++steps_;
  for (Kept& kept : kept_) {
    if (kept.muon) {
      muon(kept, rate_scale, gradient_scale);
    } else {
      adamw(kept, rate_scale, gradient_scale);
    }
  }
}

void Optimizer::adamw(Kept& kept, double rate_scale, double gradient_scale) {
  const AdamWOptions& o = options_.adamw;
  const double rate = o.rate * rate_scale;
  const double decay = kept.parameter->kind == Parameter::Kind::kVector ? 0 : o.decay;
  const double steps = static_cast<double>(steps_);
  const float keep = static_cast<float>(1 - rate * decay);
  const float step = static_cast<float>(rate / (1 - std::pow(o.beta1, steps)));
  const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(o.beta2, steps)));
  const float epsilon = static_cast<float>(o.epsilon), scale = static_cast<float>(gradient_scale);
  const float beta1 = static_cast<float>(o.beta1), other1 = static_cast<float>(1 - o.beta1);
  const float beta2 = static_cast<float>(o.beta2), other2 = static_cast<float>(1 - o.beta2);
  float* value = kept.parameter->value.data();
  const float* gradient = kept.parameter->gradient.data();
  float* m = kept.first.data();
  float* v = kept.second.data();
  in_pieces(context_, kept.parameter->size(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float g = gradient[i] * scale;
      m[i] = beta1 * m[i] + other1 * g;
      v[i] = beta2 * v[i] + other2 * (g * g);
      value[i] = keep * value[i] - step * m[i] / (std::sqrt(v[i]) * root + epsilon);
    }
  });
}

void Optimizer::muon(Kept& kept, double rate_scale, double gradient_scale) {
  const MuonOptions& o = *options_.muon;
  const Parameter& p = *kept.parameter;
  const double rate = o.rate * rate_scale;
  const double rows = static_cast<double>(p.rows), cols = static_cast<double>(p.cols);
  const double shape = o.scale == MuonOptions::Scale::kShape
                           ? std::sqrt(std::max(1.0, rows / cols))
                           : 0.2 * std::sqrt(std::max(rows, cols));
  const float momentum = static_cast<float>(o.momentum), scale = static_cast<float>(gradient_scale);
  const float keep = static_cast<float>(1 - rate * o.decay);
  const float step = static_cast<float>(rate * shape);
  AlignedArray<float> move(static_cast<size_t>(p.size()));
  const float* gradient = p.gradient.data();
  float* m = kept.first.data();
  in_pieces(context_, p.size(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const float g = gradient[i] * scale;
      m[i] = momentum * m[i] + g;
      move[static_cast<size_t>(i)] = g + momentum * m[i];
    }
  });
  orthogonalize(context_, move.span(), p.matrices, p.rows, p.cols, precision_);
  float* value = kept.parameter->value.data();
  in_pieces(context_, p.size(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      value[i] = keep * value[i] - step * move[static_cast<size_t>(i)];
    }
  });
}

}  // namespace drover
