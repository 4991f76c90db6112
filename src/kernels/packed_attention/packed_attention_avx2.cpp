#define DROVER_ATTENTION_ISA packed_attention_avx2
#define DROVER_VECTOR_FLOATS 8
#define DROVER_PACKED_FUNCTIONS kPackedAvx2
#include "kernels/packed_attention/packed_attention_float.h"
