// A model behind an OpenAI-compatible endpoint answers needle questions.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "eval/needle_answerer.h"

namespace drover {

struct Endpoint {
  std::string url;       // "http://host:8000/v1"; "/chat/completions" is added
  std::string model;     // as the endpoint names it
  std::string api_key;   // sent as a bearer token; empty: none
  double timeout = 600;  // seconds for one answer
};

class EndpointAnswerer : public NeedleAnswerer {
 public:
  // layout: how lengths are counted here. cancel must outlive it; may be null. Throws kUsage for a
  // URL that is not http or https, or a key that no header can carry.
  EndpointAnswerer(Endpoint endpoint, PromptLayout layout, const std::atomic<bool>* cancel);
  ~EndpointAnswerer() override;

  const PromptLayout& layout() const override { return layout_; }

  // Follows no redirects, which could carry the key elsewhere, and reads 16 MB at most. An endpoint
  // that is busy (429, 503) is asked again, four times, after 1, 2, 4 and 8 seconds. Throws
  // kPermission (401, 403), kNotFound (404), kLimit (400, 413, 422: most often a prompt that is too
  // long), kIo (no connection, a timeout, any other status) or kBadData (an answer in another
  // form).
  NeedleAnswer answer(const NeedlePrompt& prompt) override;

 private:
  struct Connection;

  Endpoint endpoint_;
  PromptLayout layout_;
  const std::atomic<bool>* cancel_;
  std::unique_ptr<Connection> connection_;
};

}  // namespace drover
