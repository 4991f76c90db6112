#define DROVER_TRANSPOSE_KERNELS kTransposePlain
#define DROVER_VECTOR_FLOATS 4
#include "kernels/transpose/transpose_impl.h"
