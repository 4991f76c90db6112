#include "api/embeddings.h"

#include <openssl/evp.h>

#include <bit>

#include "api/body.h"
#include "base/error.h"

namespace drover {
namespace {

namespace json = boost::json;

static_assert(std::endian::native == std::endian::little);

}  // namespace

void read_embedding(const JsonFields& body, const Model& model, ApiRequest& out) {
  const int64_t size = model.config().hidden;
  if (const auto asked = body.integer("dimensions"); asked && *asked != size) {
    throw_error(ErrorKind::kUnsupported, "dimensions: expected {}, which the model has, got {}",
                size, *asked);
  }
  const std::string_view format = body.text("encoding_format").value_or("float");
  if (format != "float" && format != "base64") {
    throw_error(ErrorKind::kUsage, "encoding_format: expected float or base64, got {}",
                printable(format));
  }
  out.base64 = format == "base64";
  for (ApiInput& input : read_inputs(body, "input", model)) {
    if (input.tokens.empty()) {
      throw_error(ErrorKind::kUsage, "input: expected at least one token, got none");
    }
    out.requests.push_back({.prompt = {std::move(input.tokens)}, .kind = RequestKind::kEmbedding});
  }
}

json::object embedding_answer(const ApiRequest& request,
                              std::span<const std::vector<Answer>> answers,
                              std::string_view model) {
  json::array data;
  int64_t tokens = 0;
  for (const std::vector<Answer>& one : answers) {
    const std::vector<float>& numbers = one[0].embedding;
    json::value embedding = request.base64
                                ? json::value(base64_of(numbers))
                                : json::value(json::array(numbers.begin(), numbers.end()));
    data.push_back(
        {{"object", "embedding"}, {"index", data.size()}, {"embedding", std::move(embedding)}});
    tokens += one[0].prompt_tokens;
  }
  return {{"object", "list"},
          {"data", std::move(data)},
          {"model", model},
          {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}};
}

std::string base64_of(std::span<const float> numbers) {
  const auto bytes = std::as_bytes(numbers);
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');  // with the zero that OpenSSL writes
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                  reinterpret_cast<const unsigned char*>(bytes.data()),
                  static_cast<int>(bytes.size()));
  out.pop_back();
  return out;
}

}  // namespace drover
