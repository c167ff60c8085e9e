/* Columns of blocks to integers and scales; each source of one width of register includes it.
 *
 * The source says LANES and QUANTIZE, the name of the one function that is seen outside. Operations
 * and their order are those of block_scales.py, whatever the width: so are the bits.
 */

#include "_blocks.h"
#include "_lanes.h"

/* The tile of columns whose sums stay in registers. */
enum { PARTS = 2, TILE = LANES * PARTS };
typedef Lanes Row[PARTS];

_Static_assert(2 * sizeof(Row) == BLOCKS_ROOM(1, LANES), "room for two tiles");

#define EACH for (int j = 0; j < PARTS; j++)

/* <x,q> and <q,q> of each column, q = clip(round(x * c)). */
WIDE static void products(const Row *x, Py_ssize_t size, const Rules *rules, const Lanes *c,
                          Lanes *xq, Lanes *qq)
{
    const Lanes lowest = (Lanes){0} + rules->lowest, highest = (Lanes){0} + rules->highest;
    Row a = {{0}}, b = {{0}}, times;
    EACH times[j] = c[j];
    for (Py_ssize_t k = 0; k < size; k++) {
        EACH {
            Lanes q = rounded(clipped(x[k][j] * times[j], lowest, highest));
            a[j] += x[k][j] * q;
            b[j] += q * q;
        }
    }
    EACH xq[j] = a[j];
    EACH qq[j] = b[j];
}

/* The same of one c that clips nothing. */
WIDE static void products_within(const Row *x, Py_ssize_t size, float c, Lanes *xq, Lanes *qq)
{
    const Lanes times = (Lanes){0} + c;
    Row a = {{0}}, b = {{0}};
    for (Py_ssize_t k = 0; k < size; k++) {
        EACH {
            Lanes q = rounded(x[k][j] * times);
            a[j] += x[k][j] * q;
            b[j] += q * q;
        }
    }
    EACH xq[j] = a[j];
    EACH qq[j] = b[j];
}

/* ||x - q * ratio||^2 of each column, q = clip(round(w / s)). */
WIDE static void errors(const Row *x, const Row *w, Py_ssize_t size, const Rules *rules,
                          const Lanes *s, const Lanes *ratio, Lanes *result)
{
    const Lanes lowest = (Lanes){0} + rules->lowest, highest = (Lanes){0} + rules->highest;
    Row sum = {{0}};
    for (Py_ssize_t k = 0; k < size; k++) {
        EACH {
            Lanes d = x[k][j] - rounded(clipped(w[k][j] / s[j], lowest, highest)) * ratio[j];
            sum[j] += d * d;
        }
    }
    EACH result[j] = sum[j];
}

/* Scales raised to the smallest normal number of their sign and rounded to their dtype, and as float32
 * again. */
WIDE static void store_scales(const Lanes *scales, const Rules *rules, uint16_t *halves,
                                Lanes *kept)
{
    const Masks sign = (Masks){0} + INT32_MIN;
    EACH {
        Masks bits = (Masks)scales[j];
        Lanes raised = larger((Lanes)(bits & ~sign), (Lanes){0} + rules->smallest);
        kept[j] = (Lanes)((Masks)raised | (bits & sign));
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
WIDE static void search(const Row *x, Py_ssize_t size, const Rules *rules, Lanes *ratio)
{
    const float reach = rules->highest + 0.5f; /* |x| <= 1: below it nothing is clipped */
    Row best = {{0}}, c, a, b;
    EACH ratio[j] = (Lanes){0} + 1 / rules->highest;
    for (Py_ssize_t i = 0; i < rules->count; i++) {
        const float candidate = rules->candidates[i];
        if (-reach < candidate && candidate < reach) {
            products_within(x, size, candidate, a, b);
        } else {
            EACH c[j] = (Lanes){0} + candidate;
            products(x, size, rules, c, a, b);
        }
        EACH {
            Lanes score = a[j] * a[j] / b[j]; /* of zeros not a number, which wins nothing */
            Masks better = score > best[j];
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
WIDE static void scales_of_tile(const Row *w, Row *x, Py_ssize_t size, const Rules *rules,
                                  const Lanes *maximum, Lanes *scales, uint16_t *halves)
{
    Row found, norm, ratio, before, after;
    uint16_t other[TILE];
    EACH found[j] = choose(maximum[j] > 0, maximum[j] / rules->highest, (Lanes){0} + 1.0f);
    store_scales(found, rules, halves, scales);
    if (rules->count == 0) return;
    EACH norm[j] = larger(maximum[j], (Lanes){0} + rules->smallest);
    for (Py_ssize_t k = 0; k < size; k++) EACH x[k][j] = w[k][j] / norm[j];
    search(x, size, rules, ratio);
    EACH found[j] = norm[j] * ratio[j];
    store_scales(found, rules, other, found);
    EACH ratio[j] = scales[j] / norm[j];
    errors(x, w, size, rules, scales, ratio, before);
    EACH ratio[j] = found[j] / norm[j];
    errors(x, w, size, rules, found, ratio, after);
    for (int i = 0; i < TILE; i++) {
        if (after[i / LANES][i % LANES] < before[i / LANES][i % LANES]) halves[i] = other[i];
    }
    EACH scales[j] = choose(after[j] < before[j], found[j], scales[j]);
}

/* Read a tile of columns, zeros beside it; returns the bits of the largest magnitude. */
WIDE static uint32_t read_tile(const float *values, Py_ssize_t size, Py_ssize_t columns,
                                 Py_ssize_t width, Row *w, Lanes *maximum)
{
    const Masks magnitude = (Masks){0} + 0x7FFFFFFF;
    Masks largest[PARTS] = {{0}};
    uint32_t all = 0;
    for (Py_ssize_t k = 0; k < size; k++) {
        if (width == TILE) {
            memcpy(w[k], values + k * columns, sizeof(Row));
        } else {
            memset(w[k], 0, sizeof(Row));
            memcpy(w[k], values + k * columns, width * sizeof(float));
        }
        EACH {
            Masks bits = (Masks)w[k][j] & magnitude, more = bits > largest[j];
            largest[j] = (bits & more) | (largest[j] & ~more);
        }
    }
    EACH maximum[j] = (Lanes)largest[j];
    for (int i = 0; i < TILE; i++) {
        uint32_t bits = largest[i / LANES][i % LANES];
        all = bits > all ? bits : all;
    }
    return all;
}

/* Columns of one block; returns the bits of the largest magnitude. */
WIDE static uint32_t quantize_columns(const float *values, int8_t *q, char *scales,
                                        Py_ssize_t size, Py_ssize_t columns, Py_ssize_t width,
                                        const Rules *rules, Row *w, Row *x)
{
    const Lanes lowest = (Lanes){0} + rules->lowest, highest = (Lanes){0} + rules->highest;
    Row maximum, kept;
    uint16_t halves[TILE];
    uint32_t largest = read_tile(values, size, columns, width, w, maximum);
    if (largest >= 0x7F800000u) return largest;
    scales_of_tile(w, x, size, rules, maximum, kept, halves);
    for (Py_ssize_t k = 0; k < size; k++) {
        int32_t whole[TILE];
        int8_t row[TILE];
        EACH {
            Masks integers = __builtin_convertvector(
                rounded(clipped(w[k][j] / kept[j], lowest, highest)), Masks);
            memcpy(whole + LANES * j, &integers, sizeof integers);
        }
        for (int i = 0; i < TILE; i++) row[i] = (int8_t)whole[i];
        memcpy(q + k * columns, row, width);
    }
    if (rules->dtype == FLOAT32) memcpy(scales, kept, width * sizeof(float));
    else memcpy(scales, halves, width * sizeof(uint16_t));
    return largest;
}

WIDE uint32_t QUANTIZE(const float *values, int8_t *q, char *scales, Py_ssize_t groups,
                                Py_ssize_t size, Py_ssize_t columns, const Rules *rules, void *room)
{
    Row *tiles = room;
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
