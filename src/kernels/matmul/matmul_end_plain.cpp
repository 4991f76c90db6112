#define DROVER_MATMUL_END matmul_end_plain
#define DROVER_VECTOR_FLOATS 4
#include "kernels/matmul/matmul_end_impl.h"
