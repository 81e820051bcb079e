// All kernels of the page code, for the run-time compiler.
#include "codec/page_decode.cu"
#include "codec/page_encode.cu"
