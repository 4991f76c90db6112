// Pictures as PNG files.
#pragma once

#include <cstdint>
#include <filesystem>

namespace drover {

// rgb: [height, width, 3]. The file appears whole or not at all. Throws what FileWriter throws.
void write_png(const std::filesystem::path& path, const uint8_t* rgb, int64_t width,
               int64_t height);

}  // namespace drover
