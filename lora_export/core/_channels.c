/* Weights with one scale for a whole column or row: the largest magnitudes, and the integers.
 *
 * What is here exists in NumPy too (weights/quantization/channels.py), bit for bit.
 *
 *   values  [rows, columns]   float32        q   [rows, columns]   int8
 *   scales, largest magnitudes               float32, one for each column, or one for each row
 */

#define LANES 8
#include "_lanes.h"

/* The larger ones of two magnitudes, as bits: NaN is the largest. */
VECTOR static inline Masks more(Masks a, Masks b)
{
    Masks mask = a > b;
    return (a & mask) | (b & ~mask);
}

VECTOR static inline Masks load_magnitudes(const float *values, Py_ssize_t count)
{
    Masks bits = {0};
    if (count >= 8) memcpy(&bits, values, sizeof bits);
    else memcpy(&bits, values, count * sizeof(float));
    return bits & ((Masks){0} + 0x7FFFFFFF);
}

VECTOR static uint32_t largest_of(Masks magnitudes)
{
    uint32_t largest = 0;
    for (int i = 0; i < 8; i++) {
        uint32_t bits = magnitudes[i];
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

VECTOR static void magnitudes_of_columns(const float *values, uint32_t *found, Py_ssize_t rows,
                                         Py_ssize_t columns)
{
    memset(found, 0, columns * sizeof *found);
    for (Py_ssize_t row = 0; row < rows; row++) {
        const float *line = values + row * columns;
        for (Py_ssize_t i = 0; i < columns; i += 8) {
            const size_t bytes = (columns - i < 8 ? columns - i : 8) * sizeof *found;
            Masks known = {0};
            memcpy(&known, found + i, bytes);
            known = more(load_magnitudes(line + i, columns - i), known);
            memcpy(found + i, &known, bytes);
        }
    }
}

VECTOR static void magnitudes_of_rows(const float *values, uint32_t *found, Py_ssize_t rows,
                                      Py_ssize_t columns)
{
    for (Py_ssize_t row = 0; row < rows; row++) {
        Masks largest = {0};
        for (Py_ssize_t i = 0; i < columns; i += 8) {
            largest = more(load_magnitudes(values + row * columns + i, columns - i), largest);
        }
        found[row] = largest_of(largest);
    }
}

/* q = clip(round(w / s)); returns the bits of the largest magnitude. */
VECTOR static uint32_t quantize(const float *values, const float *scales, int8_t *q,
                                Py_ssize_t rows, Py_ssize_t columns, int by_rows, float lowest,
                                float highest)
{
    const Lanes low = (Lanes){0} + lowest, high = (Lanes){0} + highest;
    Masks largest = {0};
    for (Py_ssize_t row = 0; row < rows; row++) {
        const float *line = values + row * columns;
        for (Py_ssize_t i = 0; i < columns; i += 8) {
            const Py_ssize_t width = columns - i < 8 ? columns - i : 8;
            Lanes value = {0}, scale = (Lanes){0} + (by_rows ? scales[row] : 1.0f);
            int8_t whole[8];
            memcpy(&value, line + i, width * sizeof(float));
            if (!by_rows) memcpy(&scale, scales + i, width * sizeof(float));
            largest = more(load_magnitudes(line + i, width), largest);
            Masks integers =
                __builtin_convertvector(rounded(clipped(value / scale, low, high)), Masks);
            for (int j = 0; j < 8; j++) whole[j] = (int8_t)integers[j];
            memcpy(q + row * columns + i, whole, width);
        }
    }
    return largest_of(largest);
}

/* ---------------------------------------------------------------------------- for the caller */

/* Whether there are whole rows, and as many others as columns or rows; else an error is set. */
static int shapes_agree(const Py_buffer *values, const Py_buffer *others, Py_ssize_t columns,
                        int by_rows)
{
    if (columns > 0 && values->len % 4 == 0 && values->len / 4 % columns == 0 &&
        others->len % 4 == 0 && others->len / 4 == (by_rows ? values->len / 4 / columns : columns))
        return 1;
    PyErr_Format(PyExc_ValueError, "%zd bytes in %zd columns do not go with %zd bytes by %s",
                 values->len, columns, others->len, by_rows ? "rows" : "columns");
    return 0;
}

static PyObject *py_largest_magnitudes(PyObject *module, PyObject *arguments)
{
    Py_buffer values, found;
    Py_ssize_t columns;
    int by_rows;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*w*np", &values, &found, &columns, &by_rows)) return NULL;
    int fits = shapes_agree(&values, &found, columns, by_rows);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        (by_rows ? magnitudes_of_rows : magnitudes_of_columns)(
            values.buf, found.buf, values.len / 4 / columns, columns);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&found);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_quantize_channels(PyObject *module, PyObject *arguments)
{
    Py_buffer values, scales, q;
    Py_ssize_t columns;
    int by_rows;
    float lowest, highest;
    uint32_t largest = 0;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*y*w*npff", &values, &scales, &q, &columns, &by_rows,
                          &lowest, &highest))
        return NULL;
    int fits = shapes_agree(&values, &scales, columns, by_rows);
    if (fits && q.len != values.len / 4) {
        PyErr_Format(PyExc_ValueError, "%zd bytes of values do not go with %zd integers",
                     values.len, q.len);
        fits = 0;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        largest = quantize(values.buf, scales.buf, q.buf, values.len / 4 / columns, columns,
                           by_rows, lowest, highest);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&q);
    if (!fits) return NULL;
    return PyFloat_FromDouble(f32_from_bits(largest));
}

PyMethodDef channels_methods[] = {
    {"largest_magnitudes", py_largest_magnitudes, METH_VARARGS,
     "largest_magnitudes(values, found, columns, by rows): fill found with max|values|."},
    {"quantize_channels", py_quantize_channels, METH_VARARGS,
     "quantize_channels(values, scales, q, columns, by rows, lowest, highest): fill q; return the "
     "largest magnitude, infinity or NaN where a value is not finite."},
    {NULL, NULL, 0, NULL},
};
