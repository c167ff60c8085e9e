/* Blocks by registers of eight numbers: AVX2, and two registers each on aarch64. */

#define LANES 8
#define QUANTIZE quantize_by_8
#include "_blocks_tile.h"
