#define DROVER_GELU_ROW gelu_row_avx2
#define DROVER_VECTOR_FLOATS 8
#include "kernels/gelu/gelu_impl.h"
