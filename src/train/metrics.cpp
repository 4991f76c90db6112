#include "train/metrics.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "base/mapped_file.h"
#include "formats/json.h"

namespace drover {
namespace {

namespace json = boost::json;

// Four digits, which is all that is meant.
double rounded(double share) { return std::round(share * 1e4) / 1e4; }

json::object to_json(const std::vector<SourceScore>& sources) {
  json::object out;
  for (const SourceScore& s : sources) {
    if (s.weight == 0 || !std::isfinite(s.loss)) continue;  // JSON has no word for it
    out[s.name] = {
        {"loss", s.loss / s.weight}, {"accuracy", s.correct / s.weight}, {"weight", s.weight}};
  }
  return out;
}

// Behind the last line that counts anything may stand, such as what a power failure left; before it
// a line that is none is an error.
size_t bytes_up_to(std::string_view text, int64_t step, int64_t evaluated,
                   const std::string& source) {
  size_t kept = 0;
  std::optional<Error> damage;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    if (end == std::string_view::npos) break;  // a write that was cut
    const std::string_view line = text.substr(at, end - at);
    at = end + 1;
    try {
      const json::value value = parse_json(line, source);
      if (!value.is_object()) throw_error(ErrorKind::kBadData, "{}: expected objects", source);
      const JsonFields fields(value.get_object(), source);
      if (fields.required_integer("step") > (fields.has("held_out") ? evaluated : step)) break;
    } catch (const Error& error) {
      if (!damage) damage = error;
      continue;
    }
    if (damage) throw *damage;
    kept = at;
  }
  return kept;
}

}  // namespace

double StepReport::crowding() const {
  double out = 1;
  for (const std::vector<double>& shares : experts) {
    const double most = *std::max_element(shares.begin(), shares.end());
    out = std::max(out, most * static_cast<double>(shares.size()));
  }
  return out;
}

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t step, int64_t evaluated)
    : path_(printable(path.string(), 300)),
      fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (fd_ < 0) throw_errno("open", path.string(), errno);
  try {
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      throw_error(ErrorKind::kUsage, "{}: another training writes there", path_);
    }
    const MappedFile file(path);
    const auto bytes = file.bytes();
    const size_t kept = bytes_up_to({reinterpret_cast<const char*>(bytes.data()), bytes.size()},
                                    step, evaluated, path_);
    if (::ftruncate(fd_, static_cast<off_t>(kept)) != 0) throw_errno("cut", path_, errno);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

MetricsFile::~MetricsFile() { ::close(fd_); }

void MetricsFile::append(std::string line) {
  line += '\n';
  std::string_view rest = line;
  while (!rest.empty()) {
    const ssize_t n = ::write(fd_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      throw_error(ErrorKind::kCannotWrite, "{}: cannot write: {}", path_, strerror(errno));
    }
    rest.remove_prefix(static_cast<size_t>(n));
  }
}

void MetricsFile::flush_to_disk() {
  if (::fsync(fd_) != 0) {
    throw_error(ErrorKind::kCannotWrite, "{}: cannot flush: {}", path_, strerror(errno));
  }
}

void MetricsFile::add(const StepReport& r) {
  json::array experts;
  for (const std::vector<double>& layer : r.experts) {
    json::array shares;
    for (const double share : layer) shares.push_back(rounded(share));
    experts.push_back(std::move(shares));
  }
  json::object line = {{"step", r.step},
                       {"stage", r.stage},
                       {"loss", r.loss},
                       {"sources", to_json(r.sources)},
                       {"rate", r.rate},
                       {"gradient_norm", r.gradient_norm},
                       {"tokens", r.tokens},
                       {"tokens_per_second",
                        r.seconds > 0 ? std::round(static_cast<double>(r.tokens) / r.seconds) : 0}};
  if (!experts.empty()) {
    line["balance"] = r.balance;
    line["experts"] = std::move(experts);
  }
  append(json::serialize(line));
}

void MetricsFile::add(const HeldOutReport& r) {
  append(json::serialize(json::object{{"step", r.step}, {"held_out", to_json(r.sources)}}));
}

}  // namespace drover
