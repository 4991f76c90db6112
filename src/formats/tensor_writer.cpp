#include "formats/tensor_writer.h"

#include "base/error.h"

namespace drover {

void write_tensor_data(FileWriter& file, size_t index, const std::string& name, uint64_t bytes,
                       const TensorProducer& producer, const Progress& progress, uint64_t done,
                       uint64_t total) {
  uint64_t written = 0;
  producer(index, [&](std::span<const std::byte> piece) {
    written += piece.size();
    if (written > bytes) {
      throw_error(ErrorKind::kInternal, "tensor {}: expected {} bytes to write, got more",
                  printable(name), bytes);
    }
    file.write(piece);
    if (progress) progress(done + written, total);
  });
  if (written != bytes) {
    throw_error(ErrorKind::kInternal, "tensor {}: expected {} bytes to write, got {}",
                printable(name), bytes, written);
  }
}

}  // namespace drover
