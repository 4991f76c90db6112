#define DROVER_GELU_ROW gelu_row_plain
#define DROVER_VECTOR_FLOATS 4
#include "kernels/gelu/gelu_impl.h"
