#define DROVER_MATMUL_END matmul_end_avx512
#define DROVER_VECTOR_FLOATS 16
#include "kernels/matmul/matmul_end_impl.h"
