#define DROVER_GELU_ROW gelu_row_avx512
#define DROVER_VECTOR_FLOATS 16
#include "kernels/gelu/gelu_impl.h"
