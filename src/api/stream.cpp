#include "api/stream.h"

#include "api/anthropic.h"
#include "api/chunks.h"
#include "api/responses.h"

namespace drover {

std::shared_ptr<AnswerStream> make_stream(const ApiRequest& request, const Tokenizer& tokenizer,
                                          ApiName name, AnswerStream::Emit emit) {
  switch (request.kind) {
    case ApiKind::kResponse:
      return std::make_shared<ResponseStream>(request, tokenizer, std::move(name), std::move(emit));
    case ApiKind::kMessage:
      return std::make_shared<MessageStream>(request, std::move(name), std::move(emit));
    default:
      return std::make_shared<ChunkStream>(request, tokenizer, std::move(name), std::move(emit));
  }
}

}  // namespace drover
