#define DROVER_TRANSPOSE_KERNELS kTransposeAmx
#define DROVER_VECTOR_FLOATS 16
#include "kernels/transpose/transpose_impl.h"
