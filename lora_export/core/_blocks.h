/* What _blocks.c asks of the sources of one width of register each. */

#ifndef LORA_EXPORT_BLOCKS_H
#define LORA_EXPORT_BLOCKS_H

#include "_kernels.h"

enum { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

typedef struct {
    float lowest, highest;     /* of the integers */
    float smallest;            /* normal number of the scales' dtype */
    int dtype;                 /* of the scales */
    const float *candidates;   /* quotients max|w| / s, negative for negative scales */
    Py_ssize_t count;
    int refinements;
} Rules;

/* The bytes that a quantizer works in, for blocks of so many rows. */
#define BLOCKS_ROOM(rows, lanes) ((rows) * 2 * 2 * (lanes) * (Py_ssize_t)sizeof(float))

/* Quantize [groups * size, columns]; the room is aligned to 64 bytes. Returns the bits of the largest
 * magnitude, infinity or NaN where a value is not finite. */
typedef uint32_t Quantizer(const float *values, int8_t *q, char *scales, Py_ssize_t groups,
                           Py_ssize_t size, Py_ssize_t columns, const Rules *rules, void *room);

Quantizer quantize_by_8; /* _blocks_8.c */
#if defined(__x86_64__)
Quantizer quantize_by_16; /* _blocks_16.c: AVX-512 */
#endif

#endif
