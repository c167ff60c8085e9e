/* LANES numbers beside each other, in one register where there is one of that width.
 *
 * A source says LANES before it includes this: 8, or 16 for AVX-512.
 */

#ifndef LORA_EXPORT_LANES_H
#define LORA_EXPORT_LANES_H

#include "_kernels.h"

#if LANES == 16
#define WIDE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")))
#else
#define WIDE VECTOR
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Masks __attribute__((vector_size(4 * LANES)));

WIDE static inline Lanes choose(Masks mask, Lanes yes, Lanes no)
{
    return (Lanes)((mask & (Masks)yes) | (~mask & (Masks)no));
}

#if LANES == 16
WIDE static inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
WIDE static inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
#elif defined(__x86_64__)
WIDE static inline Lanes larger(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }
WIDE static inline Lanes smaller(Lanes a, Lanes b) { return _mm256_min_ps(a, b); }
#else
WIDE static inline Lanes larger(Lanes a, Lanes b) { return choose(a > b, a, b); }
WIDE static inline Lanes smaller(Lanes a, Lanes b) { return choose(a < b, a, b); }
#endif

WIDE static inline Lanes clipped(Lanes value, Lanes lowest, Lanes highest)
{
    return smaller(larger(value, lowest), highest);
}

/* Adding and taking away 1.5 * 2^23 rounds to nearest, ties to even, below 2^22. */
WIDE static inline Lanes rounded(Lanes value)
{
    const Lanes step = (Lanes){0} + 12582912.0f;
    return (value + step) - step;
}

#endif
