#define DROVER_SWIGLU_ROW swiglu_row_plain
#define DROVER_VECTOR_FLOATS 4
#include "kernels/swiglu/swiglu_impl.h"
