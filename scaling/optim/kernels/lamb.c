/* LAMB's two sweeps, in blocks that fit a cache. Squares are summed in double: see trust.py.
 * Python sees these structures in native.py. */
#include <math.h>
#include <stdint.h>

/* Elements that are worked on while later ones are asked for, and how far ahead those are. What a core has asked for by
 * itself is what bounds a sweep: this makes one 10 % faster. Past the end of a block nothing is read, only asked for. */
enum { CHUNK = 128, AHEAD = 384, LINE = 16 };

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

static inline void ask_for(const float *values)
{
    for (int64_t i = AHEAD; i < AHEAD + CHUNK; i += LINE)
        __builtin_prefetch(values + i);
}

static inline int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

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
        for (int64_t first = 0; first < length; first += CHUNK) {
            const int64_t last = least(first + CHUNK, length);
            ask_for(w + first), ask_for(g + first), ask_for(m + first), ask_for(v + first);
#pragma omp simd reduction(+ : w_squares, u_squares)
            for (int64_t i = first; i < last; ++i) {
                const float gradient = g[i] * scale;
                const float mean = m[i] * b1 + gradient * c1, square = v[i] * b2 + gradient * gradient * c2;
                const float u = mean / (sqrtf(square) + eps) + decay * w[i];
                m[i] = mean;
                v[i] = square;
                w_squares += (double)w[i] * w[i];
                u_squares += (double)u * u;
            }
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
        for (int64_t first = 0; first < length; first += CHUNK) {
            const int64_t last = least(first + CHUNK, length);
            ask_for(w + first), ask_for(m + first), ask_for(v + first);
#pragma omp simd
            for (int64_t i = first; i < last; ++i)
                w[i] += rate * (m[i] / (sqrtf(v[i]) + eps) + decay * w[i]);
        }
    }
}
