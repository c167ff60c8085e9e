/* What the sources of the compiled module lora_export.core._kernels share. */

#ifndef LORA_EXPORT_KERNELS_H
#define LORA_EXPORT_KERNELS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define VECTOR __attribute__((target("avx2,f16c")))
#elif defined(__aarch64__)
#define VECTOR
#else
#error "no conversion instructions are known for this processor"
#endif

static inline float f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* _halves.c: IEEE 754 binary16 and the upper half of a binary32, to nearest, ties to even */
void widen_f16(const uint16_t *source, float *target, Py_ssize_t count);
void widen_bf16(const uint16_t *source, float *target, Py_ssize_t count);
void narrow_f16(const float *source, uint16_t *target, Py_ssize_t count);
void narrow_bf16(const float *source, uint16_t *target, Py_ssize_t count);

extern PyMethodDef halves_methods[];  /* _halves.c */
extern PyMethodDef blocks_methods[];  /* _blocks.c */
extern PyMethodDef channels_methods[];  /* _channels.c */

#endif
