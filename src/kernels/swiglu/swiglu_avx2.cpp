#define DROVER_SWIGLU_ROW swiglu_row_avx2
#define DROVER_VECTOR_FLOATS 8
#include "kernels/swiglu/swiglu_impl.h"
