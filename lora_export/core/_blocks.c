/* Blocks of float32 weights to small integers and scales, as weights/quantization/ describes it.
 *
 * What is here exists in NumPy too (weights/quantization/block_scales.py), bit for bit: the same
 * operations in float32 in the same order, a block's rows summed from the first to the last.
 *
 *   values  [K, N]       float32
 *   q       [K, N]       int8
 *   scales  [K / B, N]   float32, binary16 or bfloat16
 */

#include "_kernels.h"

enum { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

/* The tile of columns whose sums stay in registers. */
enum { PARTS = 2, TILE = 8 * PARTS };
typedef Eight Row[PARTS];

typedef struct {
    float lowest, highest;     /* of the integers */
    float smallest;            /* normal number of the scales' dtype */
    int dtype;                 /* of the scales */
    const float *candidates;   /* quotients max|w| / s, negative for negative scales */
    Py_ssize_t count;
    int refinements;
} Rules;

#define EACH for (int j = 0; j < PARTS; j++)

/* <x,q> and <q,q> of each column, q = clip(round(x * c)). */
VECTOR static void products(const Row *x, Py_ssize_t size, const Rules *rules, const Eight *c,
                            Eight *xq, Eight *qq)
{
    const Eight lowest = (Eight){0} + rules->lowest, highest = (Eight){0} + rules->highest;
    Row a = {{0}}, b = {{0}}, times;
    EACH times[j] = c[j];
    for (Py_ssize_t k = 0; k < size; k++) {
        EACH {
            Eight q = rounded(x[k][j] * times[j], lowest, highest);
            a[j] += x[k][j] * q;
            b[j] += q * q;
        }
    }
    EACH xq[j] = a[j];
    EACH qq[j] = b[j];
}

/* ||x - q * ratio||^2 of each column, q = clip(round(w / s)). */
VECTOR static void errors(const Row *x, const Row *w, Py_ssize_t size, const Rules *rules,
                          const Eight *s, const Eight *ratio, Eight *result)
{
    const Eight lowest = (Eight){0} + rules->lowest, highest = (Eight){0} + rules->highest;
    Row sum = {{0}};
    for (Py_ssize_t k = 0; k < size; k++) {
        EACH {
            Eight d = x[k][j] - rounded(w[k][j] / s[j], lowest, highest) * ratio[j];
            sum[j] += d * d;
        }
    }
    EACH result[j] = sum[j];
}

/* Scales raised to the smallest normal number of their sign and rounded to their dtype, and as float32
 * again. */
VECTOR static void store_scales(const Eight *scales, const Rules *rules, uint16_t *halves,
                                Eight *kept)
{
    const EightMasks sign = (EightMasks){0} + INT32_MIN;
    EACH {
        EightMasks bits = (EightMasks)scales[j];
        Eight raised = larger((Eight)(bits & ~sign), (Eight){0} + rules->smallest);
        kept[j] = (Eight)((EightMasks)raised | (bits & sign));
    }
    if (rules->dtype == FLOAT16) {
        narrow_f16((float *)kept, halves, TILE);
        widen_f16(halves, (float *)kept, TILE);
    } else if (rules->dtype == BFLOAT16) {
        narrow_bf16((float *)kept, halves, TILE);
        widen_bf16(halves, (float *)kept, TILE);
    }
}

/* s / m of the least squared error that was found. */
VECTOR static void search(const Row *x, Py_ssize_t size, const Rules *rules, Eight *ratio)
{
    Row best = {{0}}, c, a, b;
    EACH ratio[j] = (Eight){0} + 1 / rules->highest;
    for (Py_ssize_t i = 0; i < rules->count; i++) {
        EACH c[j] = (Eight){0} + rules->candidates[i];
        products(x, size, rules, c, a, b);
        EACH {
            Eight score = a[j] * a[j] / b[j]; /* of zeros not a number, which wins nothing */
            EightMasks better = score > best[j];
            best[j] = choose(better, score, best[j]);
            ratio[j] = choose(better, a[j] / b[j], ratio[j]);
        }
    }
    for (int i = 0; i < rules->refinements; i++) {
        EACH c[j] = 1 / ratio[j];
        products(x, size, rules, c, a, b);
        EACH ratio[j] = choose(b[j] > 0, a[j] / b[j], ratio[j]);
    }
}

/* The scales of a tile's columns w, as stored and in float32; x is room for as many. */
VECTOR static void scales_of_tile(const Row *w, Row *x, Py_ssize_t size, const Rules *rules,
                                  const Eight *maximum, Eight *scales, uint16_t *halves)
{
    Row found, norm, ratio, before, after;
    uint16_t other[TILE];
    EACH found[j] = choose(maximum[j] > 0, maximum[j] / rules->highest, (Eight){0} + 1.0f);
    store_scales(found, rules, halves, scales);
    if (rules->count == 0) return;
    EACH norm[j] = larger(maximum[j], (Eight){0} + rules->smallest);
    for (Py_ssize_t k = 0; k < size; k++) EACH x[k][j] = w[k][j] / norm[j];
    search(x, size, rules, ratio);
    EACH found[j] = norm[j] * ratio[j];
    store_scales(found, rules, other, found);
    EACH ratio[j] = scales[j] / norm[j];
    errors(x, w, size, rules, scales, ratio, before);
    EACH ratio[j] = found[j] / norm[j];
    errors(x, w, size, rules, found, ratio, after);
    for (int i = 0; i < TILE; i++) {
        if (after[i / 8][i % 8] < before[i / 8][i % 8]) halves[i] = other[i];
    }
    EACH scales[j] = choose(after[j] < before[j], found[j], scales[j]);
}

/* Read a tile of columns, zeros beside it; returns the bits of the largest magnitude. */
VECTOR static uint32_t read_tile(const float *values, Py_ssize_t size, Py_ssize_t columns,
                                 Py_ssize_t width, Row *w, Eight *maximum)
{
    const EightMasks magnitude = (EightMasks){0} + 0x7FFFFFFF;
    EightMasks largest[PARTS] = {{0}};
    uint32_t all = 0;
    for (Py_ssize_t k = 0; k < size; k++) {
        if (width == TILE) {
            memcpy(w[k], values + k * columns, sizeof(Row));
        } else {
            memset(w[k], 0, sizeof(Row));
            memcpy(w[k], values + k * columns, width * sizeof(float));
        }
        EACH {
            EightMasks bits = (EightMasks)w[k][j] & magnitude, more = bits > largest[j];
            largest[j] = (bits & more) | (largest[j] & ~more);
        }
    }
    EACH maximum[j] = (Eight)largest[j];
    for (int i = 0; i < TILE; i++) {
        uint32_t bits = largest[i / 8][i % 8];
        all = bits > all ? bits : all;
    }
    return all;
}

/* Columns of one block; returns the bits of the largest magnitude. */
VECTOR static uint32_t quantize_columns(const float *values, int8_t *q, char *scales,
                                        Py_ssize_t size, Py_ssize_t columns, Py_ssize_t width,
                                        const Rules *rules, Row *w, Row *x)
{
    const Eight lowest = (Eight){0} + rules->lowest, highest = (Eight){0} + rules->highest;
    Row maximum, kept;
    uint16_t halves[TILE];
    uint32_t largest = read_tile(values, size, columns, width, w, maximum);
    if (largest >= 0x7F800000u) return largest;
    scales_of_tile(w, x, size, rules, maximum, kept, halves);
    for (Py_ssize_t k = 0; k < size; k++) {
        int32_t whole[TILE];
        int8_t row[TILE];
        EACH {
            EightMasks integers = __builtin_convertvector(
                rounded(w[k][j] / kept[j], lowest, highest), EightMasks);
            memcpy(whole + 8 * j, &integers, sizeof integers);
        }
        for (int i = 0; i < TILE; i++) row[i] = (int8_t)whole[i];
        memcpy(q + k * columns, row, width);
    }
    if (rules->dtype == FLOAT32) memcpy(scales, kept, width * sizeof(float));
    else memcpy(scales, halves, width * sizeof(uint16_t));
    return largest;
}

VECTOR static uint32_t quantize(const float *values, int8_t *q, char *scales, Py_ssize_t groups,
                                Py_ssize_t size, Py_ssize_t columns, const Rules *rules, Row *tiles)
{
    const Py_ssize_t itemsize = rules->dtype == FLOAT32 ? 4 : 2;
    uint32_t largest = 0;
    for (Py_ssize_t group = 0; group < groups; group++) {
        for (Py_ssize_t column = 0; column < columns; column += TILE) {
            Py_ssize_t width = columns - column < TILE ? columns - column : TILE;
            Py_ssize_t start = group * size * columns + column;
            char *scale = scales + (group * columns + column) * itemsize;
            uint32_t found = quantize_columns(values + start, q + start, scale, size, columns,
                                              width, rules, tiles, tiles + size);
            largest = found > largest ? found : largest;
            if (largest >= 0x7F800000u) return largest;
        }
    }
    return largest;
}

/* Two integers to a byte, the first in the lower half. */
VECTOR static void pack_int4(const char *q, uint8_t *packed, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        uint16_t pair;
        memcpy(&pair, q + 2 * i, sizeof pair);
        packed[i] = (uint8_t)((pair & 0xFu) | (pair >> 4 & 0xF0u));
    }
}

/* ---------------------------------------------------------------------------- for the caller */

static int shapes_agree(const Py_buffer *values, const Py_buffer *q, const Py_buffer *scales,
                        const Py_buffer *candidates, Py_ssize_t size, Py_ssize_t columns,
                        int dtype)
{
    const Py_ssize_t itemsize = dtype == FLOAT32 ? 4 : 2;
    if (size > 0 && columns > 0 && dtype >= FLOAT32 && dtype <= BFLOAT16 &&
        size <= PY_SSIZE_T_MAX / (Py_ssize_t)(2 * sizeof(Row)) && columns <= PY_SSIZE_T_MAX / size &&
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
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*w*nnfffiy*i", &values, &q, &scales, &size, &columns,
                          &rules.lowest, &rules.highest, &rules.smallest, &rules.dtype, &candidates,
                          &rules.refinements))
        return NULL;
    int fits = shapes_agree(&values, &q, &scales, &candidates, size, columns, rules.dtype);
    if (fits) {
        rules.candidates = candidates.buf;
        rules.count = candidates.len / 4;
        char *room = PyMem_Malloc(2 * size * sizeof(Row) + 31);
        if (room == NULL) {
            PyErr_NoMemory();
            fits = 0;
        } else {
            Row *tiles = (Row *)(((uintptr_t)room + 31) & ~(uintptr_t)31);
            Py_BEGIN_ALLOW_THREADS
            largest = quantize(values.buf, q.buf, scales.buf, q.len / (size * columns), size,
                               columns, &rules, tiles);
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
     "dtype of scales (0 float32, 1 float16, 2 bfloat16), candidates, refinements): fill q and "
     "scales; return the largest magnitude, infinity or NaN where a value is not finite."},
    {"pack_int4", py_pack_int4, METH_VARARGS, "pack_int4(q, packed): two integers to a byte."},
    {NULL, NULL, 0, NULL},
};
