/* LAMB's two sweeps, in blocks that fit a cache. Squares are summed in double: see trust.py.
 * Python sees these structures in native.py. */
#include <math.h>
#include <stdint.h>

typedef struct {
    float *w;
    const float *g;
    float *m, *v;
    double decay, rate;
} Row;

typedef struct {
    int64_t row, start, length;
} Block;

typedef struct {
    double beta1, beta2, eps, gradient_scale;
} Terms;

void measure(const Row *rows, const Block *blocks, int64_t begin, int64_t end, const Terms *terms, double *squares)
{
    const float b1 = (float)terms->beta1, b2 = (float)terms->beta2;
    const float c1 = (float)(1 - terms->beta1), c2 = (float)(1 - terms->beta2); /* in float 1 - 0.999 is off by 1e-5 */
    const float eps = (float)terms->eps, scale = (float)terms->gradient_scale;
    for (int64_t block = begin; block < end; ++block) {
        const Row row = rows[blocks[block].row];
        const int64_t start = blocks[block].start, length = blocks[block].length;
        const float *restrict w = row.w + start, *restrict g = row.g + start;
        float *restrict m = row.m + start, *restrict v = row.v + start;
        const float decay = (float)row.decay;
        double w_squares = 0, u_squares = 0;
#pragma omp simd reduction(+ : w_squares, u_squares)
        for (int64_t i = 0; i < length; ++i) {
            const float gradient = g[i] * scale;
            m[i] = m[i] * b1 + gradient * c1;
            v[i] = v[i] * b2 + gradient * gradient * c2;
            const float u = m[i] / (sqrtf(v[i]) + eps) + decay * w[i];
            w_squares += (double)w[i] * w[i];
            u_squares += (double)u * u;
        }
        squares[2 * block] = w_squares;
        squares[2 * block + 1] = u_squares;
    }
}

void apply(const Row *rows, const Block *blocks, int64_t begin, int64_t end, const Terms *terms)
{
    for (int64_t block = begin; block < end; ++block) {
        const Row row = rows[blocks[block].row];
        const int64_t start = blocks[block].start, length = blocks[block].length;
        float *restrict w = row.w + start;
        const float *restrict m = row.m + start, *restrict v = row.v + start;
        const float decay = (float)row.decay, rate = (float)row.rate, eps = (float)terms->eps;
#pragma omp simd
        for (int64_t i = 0; i < length; ++i)
            w[i] += rate * (m[i] / (sqrtf(v[i]) + eps) + decay * w[i]);
    }
}
