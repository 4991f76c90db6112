#define DROVER_ATTENTION_ISA attention_avx512
#define DROVER_VECTOR_FLOATS 16
#include "kernels/attention/attention_impl.h"
#include "kernels/attention/kv_store_impl.h"
