/* Blocks by registers of sixteen numbers: AVX-512, where the processor has it. */

#if defined(__x86_64__)
#define LANES 16
#define QUANTIZE quantize_by_16
#include "_blocks_tile.h"
#else
typedef int nothing; /* a source declares something */
#endif
