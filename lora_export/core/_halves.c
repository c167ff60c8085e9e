/* Two-byte floating-point numbers to float32 and back by the processor's own instructions.
 *
 * What is here exists in NumPy too (core/halves.py), bit for bit; this does it at the speed of
 * memory.
 *
 *   f16    IEEE 754 binary16         bf16    the upper half of a binary32
 *   rounding: nearest, ties to even; subnormal numbers are kept
 */

#define LANES 8
#include "_lanes.h"

enum { RUN = 2048 };  /* numbers whose squares are summed in float32 before they join the double */

/* ------------------------------------------------------------------------------ one at a time */

#if defined(__x86_64__)
VECTOR static float widen_f16_one(uint16_t half) { return _cvtsh_ss(half); }
VECTOR static uint16_t narrow_f16_one(float value)
{
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
}
#else
static float widen_f16_one(uint16_t half)
{
    __fp16 value;
    memcpy(&value, &half, sizeof value);
    return value;
}
static uint16_t narrow_f16_one(float value)
{
    __fp16 rounded = (__fp16)value;
    uint16_t half;
    memcpy(&half, &rounded, sizeof half);
    return half;
}
#endif

static float widen_bf16_one(uint16_t half) { return f32_from_bits((uint32_t)half << 16); }

static uint16_t narrow_bf16_one(float value)
{
    uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {  /* NaN: the sign, and one that stays NaN */
        return (uint16_t)((bits >> 16 & 0x8000u) | 0x7FC0u);
    }
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/* --------------------------------------------------------------------------------- in arrays */

VECTOR void widen_f16(const uint16_t *source, float *target, Py_ssize_t count)
{
    Py_ssize_t i = 0;
#if defined(__x86_64__)
    for (; i + 8 <= count; i += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(source + i));
        _mm256_storeu_ps(target + i, _mm256_cvtph_ps(halves));
    }
#endif
    for (; i < count; i++) target[i] = widen_f16_one(source[i]);
}

VECTOR void narrow_f16(const float *source, uint16_t *target, Py_ssize_t count)
{
    Py_ssize_t i = 0;
#if defined(__x86_64__)
    for (; i + 8 <= count; i += 8) {
        __m256 values = _mm256_loadu_ps(source + i);
        _mm_storeu_si128((__m128i *)(target + i),
                         _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    for (; i < count; i++) target[i] = narrow_f16_one(source[i]);
}

VECTOR void narrow_bf16(const float *source, uint16_t *target, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) target[i] = narrow_bf16_one(source[i]);
}

/* Whether no number has an exponent of ones only. */
VECTOR static int finite_16(const uint16_t *bits, uint16_t infinity, Py_ssize_t count)
{
    uint16_t largest = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        uint16_t magnitude = bits[i] & 0x7FFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < infinity;
}

VECTOR static int finite_32(const uint32_t *bits, Py_ssize_t count)
{
    uint32_t largest = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        uint32_t magnitude = bits[i] & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < 0x7F800000u;
}

typedef struct {
    double error, delta;
    int64_t unmoved;
} Measured;

#define MEASURE(NAME, WIDEN)                                                                     \
    VECTOR static void NAME(const float *before, const float *merged, const uint16_t *stored,    \
                            Py_ssize_t count, Measured *result)                                  \
    {                                                                                            \
        for (Py_ssize_t start = 0; start < count; start += RUN) {                                \
            Py_ssize_t end = start + RUN < count ? start + RUN : count;                          \
            Lanes errors = {0}, deltas = {0}, value = {0}, base = {0}, exact = {0};              \
            Masks same = {0};                                                              \
            for (Py_ssize_t i = start; i < end; i += 8) {                                        \
                Py_ssize_t width = i + 8 <= end ? 8 : end - i;                                   \
                if (width == 8) {                                                                \
                    WIDEN(stored + i, (float *)&value, 8);                                       \
                    memcpy(&base, before + i, sizeof base);                                      \
                    memcpy(&exact, merged + i, sizeof exact);                                    \
                } else { /* what lies past the end counts as an entry that moved by nothing */   \
                    value = base = exact = (Lanes){0};                                           \
                    WIDEN(stored + i, (float *)&value, width);                                   \
                    memcpy(&base, before + i, width * sizeof(float));                            \
                    memcpy(&exact, merged + i, width * sizeof(float));                           \
                    result->unmoved -= 8 - width;                                                \
                }                                                                                \
                Lanes error = value - exact, delta = exact - base;                               \
                errors += error * error;                                                         \
                deltas += delta * delta;                                                         \
                same -= value == base;                                                           \
            }                                                                                    \
            for (int j = 0; j < 8; j++) {                                                        \
                result->error += errors[j];                                                      \
                result->delta += deltas[j];                                                      \
                result->unmoved += same[j];                                                      \
            }                                                                                    \
        }                                                                                        \
    }

VECTOR void widen_bf16(const uint16_t *source, float *target, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) target[i] = widen_bf16_one(source[i]);
}

MEASURE(measure_f16, widen_f16)
MEASURE(measure_bf16, widen_bf16)

/* ---------------------------------------------------------------------------- for the caller */

/* Whether the buffers hold as many numbers; an error is set where they do not. */
static int sizes_agree(const Py_buffer *wide, const Py_buffer *narrow)
{
    if (wide->len % 4 == 0 && wide->len / 4 == narrow->len / 2 && narrow->len % 2 == 0) return 1;
    PyErr_Format(PyExc_ValueError, "%zd bytes of float32 do not go with %zd bytes of halves",
                 wide->len, narrow->len);
    return 0;
}

static PyObject *py_widen_f16(PyObject *module, PyObject *arguments)
{
    Py_buffer source, target;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*", &source, &target)) return NULL;
    int fits = sizes_agree(&target, &source);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        widen_f16(source.buf, target.buf, source.len / 2);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyObject *narrow(PyObject *arguments,
                        void (*convert)(const float *, uint16_t *, Py_ssize_t))
{
    Py_buffer source, target;
    if (!PyArg_ParseTuple(arguments, "y*w*", &source, &target)) return NULL;
    int fits = sizes_agree(&source, &target);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        convert(source.buf, target.buf, target.len / 2);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_narrow_f16(PyObject *module, PyObject *arguments)
{
    (void)module;
    return narrow(arguments, narrow_f16);
}

static PyObject *py_narrow_bf16(PyObject *module, PyObject *arguments)
{
    (void)module;
    return narrow(arguments, narrow_bf16);
}

static PyObject *all_finite(PyObject *arguments, int itemsize, uint16_t infinity)
{
    Py_buffer values;
    if (!PyArg_ParseTuple(arguments, "y*", &values)) return NULL;
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = itemsize == 2 ? finite_16(values.buf, infinity, values.len / 2)
                           : finite_32(values.buf, values.len / 4);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&values);
    return PyBool_FromLong(result);
}

static PyObject *py_finite_f16(PyObject *module, PyObject *arguments)
{
    (void)module;
    return all_finite(arguments, 2, 0x7C00u);
}

static PyObject *py_finite_bf16(PyObject *module, PyObject *arguments)
{
    (void)module;
    return all_finite(arguments, 2, 0x7F80u);
}

static PyObject *py_finite_f32(PyObject *module, PyObject *arguments)
{
    (void)module;
    return all_finite(arguments, 4, 0);
}

static PyObject *measure(PyObject *arguments,
                         void (*over)(const float *, const float *, const uint16_t *, Py_ssize_t,
                                      Measured *))
{
    Py_buffer before, merged, stored;
    if (!PyArg_ParseTuple(arguments, "y*y*y*", &before, &merged, &stored)) return NULL;
    Measured result = {0.0, 0.0, 0};
    int fits = sizes_agree(&before, &stored) && sizes_agree(&merged, &stored);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        over(before.buf, merged.buf, stored.buf, stored.len / 2, &result);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&before);
    PyBuffer_Release(&merged);
    PyBuffer_Release(&stored);
    if (!fits) return NULL;
    return Py_BuildValue("ddL", result.error, result.delta, (long long)result.unmoved);
}

static PyObject *py_measure_f16(PyObject *module, PyObject *arguments)
{
    (void)module;
    return measure(arguments, measure_f16);
}

static PyObject *py_measure_bf16(PyObject *module, PyObject *arguments)
{
    (void)module;
    return measure(arguments, measure_bf16);
}

PyMethodDef halves_methods[] = {
    {"widen_f16", py_widen_f16, METH_VARARGS, "widen_f16(halves, float32s): convert, exactly."},
    {"narrow_f16", py_narrow_f16, METH_VARARGS, "narrow_f16(float32s, halves): round."},
    {"narrow_bf16", py_narrow_bf16, METH_VARARGS, "narrow_bf16(float32s, halves): round."},
    {"finite_f16", py_finite_f16, METH_VARARGS, "finite_f16(halves): whether all are finite."},
    {"finite_bf16", py_finite_bf16, METH_VARARGS, "finite_bf16(halves): whether all are finite."},
    {"finite_f32", py_finite_f32, METH_VARARGS, "finite_f32(float32s): whether all are finite."},
    {"measure_f16", py_measure_f16, METH_VARARGS,
     "measure_f16(before, merged, stored): |stored - merged|^2, |merged - before|^2, and how many "
     "entries of stored equal before."},
    {"measure_bf16", py_measure_bf16, METH_VARARGS, "As measure_f16, for bfloat16."},
    {NULL, NULL, 0, NULL},
};
