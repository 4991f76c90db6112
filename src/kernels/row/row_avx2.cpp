#define DROVER_ROW_KERNELS kRowAvx2
#define DROVER_VECTOR_FLOATS 8
#include "kernels/row/row_impl.h"
