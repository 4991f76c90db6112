#include "eval/score.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/file_writer.h"
#include "engine/logprobs.h"

namespace drover {
namespace {

// The header of a version 1.0 .npy file: magic, version, length, then a Python dictionary padded
// with spaces to a multiple of 64 bytes.
std::string npy_header(int64_t rows, int64_t cols) {
  std::string text =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, cols);
  constexpr size_t kPreamble = 10;
  text.append(63 - (kPreamble + text.size()) % 64, ' ');
  text += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(text.size() & 0xff);
  out += static_cast<char>(text.size() >> 8);
  return out + text;
}

}  // namespace

double TextScore::perplexity() const { return std::exp(nll / static_cast<double>(tokens)); }

TextScore score_text(Engine& engine, const Tokenizer& tokenizer, const Prompt& text,
                     std::optional<Token> bos, const Progress& progress) {
  const std::span tokens(text.tokens);
  if (tokens.size() + (bos ? 1 : 0) < 2) {
    throw_error(ErrorKind::kUsage, "text: expected at least two tokens, got {}", tokens.size());
  }
  const size_t room = static_cast<size_t>(engine.context()) - (bos ? 1 : 0);
  if (room < 1 || engine.context() < 2) {
    throw_error(ErrorKind::kUsage, "context: expected at least 2 tokens, got {}", engine.context());
  }
  if (!text.pictures.empty())
    engine.expect_room(static_cast<int64_t>(tokens.size() + (bos ? 1 : 0)));
  TextScore score;
  size_t done = 0;
  while (done < tokens.size()) {
    const auto piece = tokens.subspan(done, std::min(room, tokens.size() - done));
    Prompt window{{piece.begin(), piece.end()}, text.pictures};
    ++score.windows;
    if (bos) window.tokens.insert(window.tokens.begin(), *bos);
    engine.score(
        window,
        [&](int64_t first, ConstMatrixView logits) {
          for (int64_t t = 0; t < logits.rows; ++t) {
            const size_t next = static_cast<size_t>(first + t) + 1;
            if (next == window.tokens.size()) break;
            const Token token = window.tokens[next];
            if (!text.pictures.empty() && tokenizer.is_control(token)) continue;
            const std::span row(logits.row(t), static_cast<size_t>(logits.cols));
            score.nll += log_sum_exp(row) - row[token];
            ++score.tokens;
          }
        },
        [&](uint64_t n, uint64_t) {
          if (progress) progress(std::min<uint64_t>(done + n, tokens.size()), tokens.size());
        });
    done += piece.size();
  }
  if (score.tokens == 0) {
    throw_error(ErrorKind::kUsage, "text: expected words beside the pictures, got none");
  }
  return score;
}

void write_logits(Engine& engine, const Prompt& prompt, const std::filesystem::path& out,
                  const Progress& progress) {
  const std::span tokens(prompt.tokens);
  if (tokens.empty()) throw_error(ErrorKind::kUsage, "tokens: expected at least one, got none");
  FileWriter file(out);
  engine.score(
      prompt,
      [&](int64_t first, ConstMatrixView logits) {
        if (first == 0) file.write(npy_header(static_cast<int64_t>(tokens.size()), logits.cols));
        for (int64_t t = 0; t < logits.rows; ++t) {
          file.write(std::as_bytes(std::span(logits.row(t), static_cast<size_t>(logits.cols))));
        }
      },
      progress);
  file.commit();
}

}  // namespace drover
