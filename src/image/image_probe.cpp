// For tests/reference/image_judge.py, not a test by itself:
//   image_probe decode FILE      width and height in one line, then the raw RGB, to standard output
//   image_probe samples FOLDER   writes pictures of kinds that Pillow reads and cannot write
#include <cstdio>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/file_writer.h"
#include "base/mapped_file.h"
#include "image/decode.h"
#include "tests/support/raw_picture.h"

namespace drover {
namespace {

void decode(const std::filesystem::path& path) {
  const MappedFile file(path);
  const Image image = decode_image(file.bytes(), path.string());
  std::printf("%lld %lld\n", static_cast<long long>(image.width),
              static_cast<long long>(image.height));
  std::fwrite(image.rgb.data(), 1, image.rgb.size(), stdout);
}

void write_samples(const std::filesystem::path& folder) {
  using testing::JpegKind;
  const auto write = [&](const std::string& name, int width, int height, const JpegKind& kind) {
    write_file(folder / (name + ".jpg"), testing::raw_jpeg(width, height, kind, 7));
  };
  using Sampling = decltype(JpegKind::sampling);
  const std::pair<const char*, Sampling> samplings[] = {
      {"444", {{1, 1}, {1, 1}, {1, 1}}},         {"440", {{1, 2}, {1, 1}, {1, 1}}},
      {"411", {{4, 1}, {1, 1}, {1, 1}}},         {"410", {{4, 2}, {1, 1}, {1, 1}}},
      {"311", {{3, 1}, {1, 1}, {1, 1}}},         {"cb_finer", {{2, 2}, {2, 1}, {1, 2}}},
      {"luma_coarser", {{1, 1}, {2, 2}, {1, 1}}}};
  for (const auto& [name, sampling] : samplings) {
    write(std::string("sampling_") + name, 61, 43, {.sampling = sampling});
    write(std::string("progressive_sampling_") + name, 61, 43,
          {.sampling = sampling, .progressive = true});
  }
  const Sampling even(4, {1, 1}), half = {{2, 2}, {1, 1}, {1, 1}, {2, 2}};
  write("arithmetic", 61, 43, {.arithmetic = true});
  write("arithmetic_progressive", 61, 43, {.progressive = true, .arithmetic = true});
  write("arithmetic_grey", 61, 43, {.channels = 1, .arithmetic = true});
  write("ycck", 61, 43, {.channels = 4, .space = JCS_YCCK, .sampling = half});
  write("ycck_progressive", 61, 43,
        {.channels = 4, .space = JCS_YCCK, .sampling = half, .progressive = true});
  write("cmyk", 61, 43, {.channels = 4, .space = JCS_CMYK, .sampling = even});
  write("rgb", 61, 43, {.space = JCS_RGB, .sampling = even});
  write("restarts", 61, 43, {.restart_interval = 3});
  write("restarts_progressive", 61, 43, {.progressive = true, .restart_interval = 3});
  write("wide", 4001, 1, {});
  write("tall_progressive", 1, 4001, {.progressive = true});
}

}  // namespace
}  // namespace drover

int main(int argc, char** argv) {
  const std::string verb = argc == 3 ? argv[1] : "";
  try {
    if (verb == "decode") {
      drover::decode(argv[2]);
    } else if (verb == "samples") {
      drover::write_samples(argv[2]);
    } else {
      std::fputs("usage: image_probe decode FILE | samples FOLDER\n", stderr);
      return 2;
    }
  } catch (const drover::Error& error) {
    std::fprintf(stderr, "image_probe: %s: %s\n",
                 std::string(drover::error_kind_name(error.kind())).c_str(), error.what());
    return drover::exit_code(error.kind());
  }
  return 0;
}
