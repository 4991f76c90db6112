// libjpeg's headers, in the one order in which they compile.
#pragma once

// clang-format off
#include <stddef.h>
#include <stdio.h>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on
