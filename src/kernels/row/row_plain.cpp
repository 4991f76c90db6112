#define DROVER_ROW_KERNELS kRowPlain
#define DROVER_VECTOR_FLOATS 4
#include "kernels/row/row_impl.h"
