#define DROVER_TRANSPOSE_KERNELS kTransposeAvx2
#define DROVER_VECTOR_FLOATS 8
#include "kernels/transpose/transpose_impl.h"
