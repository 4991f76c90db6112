#define DROVER_ATTENTION_ISA attention_plain
#define DROVER_VECTOR_FLOATS 4
#include "kernels/attention/attention_impl.h"
#include "kernels/attention/kv_store_impl.h"
