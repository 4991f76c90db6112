#define DROVER_MATMUL_END matmul_end_avx2
#define DROVER_VECTOR_FLOATS 8
#include "kernels/matmul/matmul_end_impl.h"
