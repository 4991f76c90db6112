#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "kernels/matmul/matmul.h"
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

// to[c, r] = from[r, c]
void transpose_matrix(const float* from, int64_t rows, int64_t cols, float* to) {
  constexpr int64_t kBlock = 32;  // of both, 4 KB: in the first cache
  for (int64_t first = 0; first < rows; first += kBlock) {
    const int64_t last = std::min(first + kBlock, rows);
    for (int64_t left = 0; left < cols; left += kBlock) {
      const int64_t right = std::min(left + kBlock, cols);
      for (int64_t r = first; r < last; ++r) {
        for (int64_t c = left; c < right; ++c) to[c * rows + r] = from[r * cols + c];
      }
    }
  }
}

// Copies of matrices in the type that products take.
class Factors {
 public:
  Factors(Context& context, Precision precision, int64_t count)
      : context_(context), bf16_(precision == Precision::kBF16) {
    if (bf16_) rounded_ = AlignedArray<bf16>(static_cast<size_t>(count));
  }
  // With f32 it is a view of the floats themselves.
  const std::byte* of(const float* x, int64_t count) {
    if (!bf16_) return reinterpret_cast<const std::byte*>(x);
    in_pieces(context_, count, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) rounded_[static_cast<size_t>(i)] = to_bf16(x[i]);
    });
    return reinterpret_cast<const std::byte*>(rounded_.data());
  }
  // w [rows, cols], matrix `index` of what of() gave.
  WeightView view(const std::byte* data, int64_t index, int64_t rows, int64_t cols) const {
    const DType type = bf16_ ? DType::kBF16 : DType::kF32;
    return {data + index * rows * row_bytes(type, cols), type, rows, cols};
  }

 private:
  Context& context_;
  const bool bf16_;
  AlignedArray<bf16> rounded_;
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
  // x lies on its side where it stands: products x x^T are then the smaller ones.
  const bool turned = rows > cols;
  const int64_t m = std::min(rows, cols), n = std::max(rows, cols);
  AlignedArray<float> x(values.size()), other(values.size());
  const auto squares = static_cast<size_t>(matrices * m * m);
  AlignedArray<float> a(squares), b(squares);

  context.threads.run(matrices, [&](int64_t i, int) {
    float* from = values.data() + i * size;
    float* to = x.data() + i * size;
    const double norm = std::sqrt(sum_of_squares(from, size));
    const float scale = static_cast<float>(1.0 / (norm + 1e-7));
    for (int64_t k = 0; k < size; ++k) from[k] *= scale;
    if (turned) {
      transpose_matrix(from, rows, cols, to);
    } else {
      std::copy(from, from + size, to);
    }
  });

  Factors wide(context, precision, matrices * size), square(context, precision, matrices * m * m);
  std::vector<MatmulJob> jobs(static_cast<size_t>(matrices));
  const auto multiply = [&](const float* left, int64_t left_cols, const Factors& factors,
                            const std::byte* right, int64_t right_rows, float* out, bool add) {
    for (int64_t i = 0; i < matrices; ++i) {
      MatmulJob& job = jobs[static_cast<size_t>(i)];
      job.x = {left + i * m * left_cols, m, left_cols, left_cols};
      job.w = factors.view(right, i, right_rows, left_cols);
      job.out = {out + i * m * right_rows, m, right_rows, right_rows};
      job.end.add = add;
      job.rounded = precision == Precision::kBF16;
    }
    matmul(context, jobs);
  };
  for (int step = 0; step < kSteps; ++step) {
    // a = x x^T
    multiply(x.data(), n, wide, wide.of(x.data(), matrices * size), m, a.data(), /*add=*/false);
    // b = kB a + kC a a: a is its own transpose, but for rounding
    const std::byte* right = square.of(a.data(), matrices * m * m);
    multiply(a.data(), m, square, right, m, b.data(), /*add=*/false);
    in_pieces(context, matrices * m * m, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const auto at = static_cast<size_t>(i);
        b[at] = kB * a[at] + kC * b[at];
      }
    });
    // x = kA x + b x
    context.threads.run(matrices, [&](int64_t i, int) {
      float* of = x.data() + i * size;
      transpose_matrix(of, m, n, other.data() + i * size);
      for (int64_t k = 0; k < size; ++k) of[k] *= kA;
    });
    right = wide.of(other.data(), matrices * size);
    multiply(b.data(), m, wide, right, n, x.data(), /*add=*/true);
  }
  context.threads.run(matrices, [&](int64_t i, int) {
    const float* from = x.data() + i * size;
    float* to = values.data() + i * size;
    if (turned) {
      transpose_matrix(from, cols, rows, to);
    } else {
      std::copy(from, from + size, to);
    }
  });
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
