// Internal to the writers of weight files: one tensor's bytes from its producer to the file.
#pragma once

#include <cstdint>
#include <string>

#include "base/file_writer.h"
#include "base/progress.h"
#include "formats/named_tensor.h"

namespace drover {

// Writes the bytes of tensor number `index` as the producer gives them. A producer that gives more
// or fewer than `bytes` is a kInternal Error. `progress` hears of `done` + what is written of
// `total`.
void write_tensor_data(FileWriter& file, size_t index, const std::string& name, uint64_t bytes,
                       const TensorProducer& producer, const Progress& progress, uint64_t done,
                       uint64_t total);

}  // namespace drover
