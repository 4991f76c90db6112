#define DROVER_ATTENTION_ISA packed_attention_avx512
#define DROVER_VECTOR_FLOATS 16
#define DROVER_PACKED_FUNCTIONS kPackedAvx512
#include "kernels/packed_attention/packed_attention_float.h"
