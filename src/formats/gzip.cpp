#include "formats/gzip.h"

#include <zlib.h>

#include <algorithm>

#include "base/error.h"
#include "base/mapped_file.h"

namespace drover {
namespace {

// zlib counts in 32 bits.
constexpr size_t kPiece = size_t{1} << 20;

class Inflater {
 public:
  Inflater() { DROVER_CHECK(inflateInit2(&stream_, 15 + 16) == Z_OK); }  // gzip and nothing else
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  z_stream* operator->() { return &stream_; }
  int step() { return inflate(&stream_, Z_NO_FLUSH); }
  void next_member() { DROVER_CHECK(inflateReset(&stream_) == Z_OK); }

 private:
  z_stream stream_{};
};

}  // namespace

std::string gunzip(std::string_view bytes, const std::string& source, size_t limit) {
  std::string out, piece(std::min(kPiece - 1, limit) + 1, '\0');
  Inflater inflater;
  bool member_ended = false;
  size_t taken = 0;
  while (!(member_ended && taken == bytes.size())) {
    if (member_ended) inflater.next_member();
    const std::string_view rest = bytes.substr(taken, kPiece);
    inflater->next_in = reinterpret_cast<Bytef*>(const_cast<char*>(rest.data()));
    inflater->avail_in = static_cast<uInt>(rest.size());
    inflater->next_out = reinterpret_cast<Bytef*>(piece.data());
    inflater->avail_out = static_cast<uInt>(piece.size());
    const int code = inflater.step();
    const size_t made = piece.size() - inflater->avail_out;
    const size_t used = rest.size() - inflater->avail_in;
    member_ended = code == Z_STREAM_END;
    const bool stuck = code == Z_BUF_ERROR || (made == 0 && used == 0 && !member_ended);
    if ((code != Z_OK && !member_ended) || stuck) {
      throw_error(ErrorKind::kBadData, "{}: gzip at byte {}: {}", source, taken,
                  stuck ? "expected more, got the end of the file" : "damaged");
    }
    taken += used;
    out.append(piece, 0, made);
    if (out.size() > limit) {
      throw_error(ErrorKind::kLimit, "{}: expected at most {} bytes unpacked, got more", source,
                  limit);
    }
  }
  return out;
}

std::string read_unpacked(const std::filesystem::path& path, size_t limit) {
  const MappedFile file(path);
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()),
                               file.bytes().size());
  const std::string source = printable(file.path(), 300);
  if (bytes.starts_with("\x1f\x8b")) return gunzip(bytes, source, limit);
  if (bytes.size() > limit) {
    throw_error(ErrorKind::kLimit, "{}: expected at most {} bytes, got {}", source, limit,
                bytes.size());
  }
  return std::string(bytes);
}

}  // namespace drover
