#define DROVER_ATTENTION_ISA attention_avx2
#define DROVER_VECTOR_FLOATS 8
#include "kernels/attention/attention_impl.h"
#include "kernels/attention/kv_store_impl.h"
