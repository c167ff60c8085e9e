/* Blocks of float32 weights to small integers and scales, as weights/quantization/ describes it.
 *
 * What is here exists in NumPy too (weights/quantization/block_scales.py), bit for bit: the same
 * operations in float32 in the same order, a block's rows summed from the first to the last.
 *
 *   values  [K, N]       float32
 *   q       [K, N]       int8
 *   scales  [K / B, N]   float32, binary16 or bfloat16
 */

#include "_blocks.h"

/* Two integers to a byte, the first in the lower half. */
VECTOR static void pack_int4(const char *q, uint8_t *packed, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        uint16_t pair;
        memcpy(&pair, q + 2 * i, sizeof pair);
        packed[i] = (uint8_t)((pair & 0xFu) | (pair >> 4 & 0xF0u));
    }
}

/* The quantizer for registers of so many numbers, 0 for the widest of this processor; NULL: it has
 * none of them. */
static Quantizer *quantizer_of(int lanes)
{
#if defined(__x86_64__)
    const int has_16 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_16 && (lanes == 0 || lanes == 16)) return quantize_by_16;
#endif
    return lanes == 0 || lanes == 8 ? quantize_by_8 : NULL;
}

/* ---------------------------------------------------------------------------- for the caller */

enum { WIDEST = 16, ALIGNMENT = 64 };

static int shapes_agree(const Py_buffer *values, const Py_buffer *q, const Py_buffer *scales,
                        const Py_buffer *candidates, Py_ssize_t size, Py_ssize_t columns,
                        int dtype)
{
    const Py_ssize_t itemsize = dtype == FLOAT32 ? 4 : 2;
    if (size > 0 && columns > 0 && dtype >= FLOAT32 && dtype <= BFLOAT16 &&
        size < PY_SSIZE_T_MAX / BLOCKS_ROOM(1, WIDEST) && columns <= PY_SSIZE_T_MAX / size &&
        q->len % (size * columns) == 0 && values->len % 4 == 0 && values->len / 4 == q->len &&
        scales->len % itemsize == 0 && scales->len / itemsize == q->len / size &&
        candidates->len % 4 == 0)
        return 1;
    PyErr_Format(PyExc_ValueError,
                 "%zd bytes of values, %zd of integers and %zd of scales do not go with blocks of "
                 "%zd rows and %zd columns",
                 values->len, q->len, scales->len, size, columns);
    return 0;
}

static PyObject *py_quantize_blocks(PyObject *module, PyObject *arguments)
{
    Py_buffer values, q, scales, candidates;
    Py_ssize_t size, columns;
    Rules rules;
    uint32_t largest = 0;
    int lanes = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*w*nnfffiy*i|i", &values, &q, &scales, &size, &columns,
                          &rules.lowest, &rules.highest, &rules.smallest, &rules.dtype, &candidates,
                          &rules.refinements, &lanes))
        return NULL;
    Quantizer *quantize = quantizer_of(lanes);
    int fits = shapes_agree(&values, &q, &scales, &candidates, size, columns, rules.dtype);
    if (fits && quantize == NULL) {
        PyErr_Format(PyExc_ValueError, "this processor has no registers of %d numbers", lanes);
        fits = 0;
    }
    if (fits) {
        rules.candidates = candidates.buf;
        rules.count = candidates.len / 4;
        char *room = PyMem_Malloc(BLOCKS_ROOM(size, WIDEST) + ALIGNMENT - 1);
        if (room == NULL) {
            PyErr_NoMemory();
            fits = 0;
        } else {
            void *aligned = (void *)(((uintptr_t)room + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
            Py_BEGIN_ALLOW_THREADS
            largest = quantize(values.buf, q.buf, scales.buf, q.len / (size * columns), size,
                               columns, &rules, aligned);
            Py_END_ALLOW_THREADS
            PyMem_Free(room);
        }
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&q);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&candidates);
    if (!fits) return NULL;
    return PyFloat_FromDouble(f32_from_bits(largest));
}

static PyObject *py_pack_int4(PyObject *module, PyObject *arguments)
{
    Py_buffer q, packed;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*", &q, &packed)) return NULL;
    int fits = q.len % 2 == 0 && q.len / 2 == packed.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        pack_int4(q.buf, packed.buf, packed.len);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, "%zd integers of 4 bits do not go with %zd bytes", q.len,
                     packed.len);
    }
    PyBuffer_Release(&q);
    PyBuffer_Release(&packed);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

PyMethodDef blocks_methods[] = {
    {"quantize_blocks", py_quantize_blocks, METH_VARARGS,
     "quantize_blocks(values, q, scales, rows of a block, columns, lowest, highest, smallest scale, "
     "dtype of scales (0 float32, 1 float16, 2 bfloat16), candidates, refinements, numbers in a "
     "register (8 or 16; 0: the widest)): fill q and scales; return the largest magnitude, infinity "
     "or NaN where a value is not finite."},
    {"pack_int4", py_pack_int4, METH_VARARGS, "pack_int4(q, packed): two integers to a byte."},
    {NULL, NULL, 0, NULL},
};
