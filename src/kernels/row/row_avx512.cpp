#define DROVER_ROW_KERNELS kRowAvx512
#define DROVER_VECTOR_FLOATS 16
#include "kernels/row/row_impl.h"
