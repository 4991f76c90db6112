#define DROVER_SWIGLU_ROW swiglu_row_avx512
#define DROVER_VECTOR_FLOATS 16
#include "kernels/swiglu/swiglu_impl.h"
