/* Sparse matrices between transforms: y += alpha · Vᵀ·S·U·x for each row x, where U and V are Fourier transforms, one level of
 * wavelets, or nothing, and S has values at given places. A tile of rows is turned round, so that each value of a vector
 * is LANES neighbouring floats and every step is plain vector arithmetic. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "spectrum.c"
#include "formats.h"

#define LANES 32

static inline int64_t planes(const pk_transform *f) { return f->kind == PK_FOURIER ? 2 : 1; }
static inline int64_t spectrum(const pk_transform *f) { return planes(f) * f->size * LANES; }

#include "levels.h"

/* Spectra of both sides, their gradients' room, and room for a transform beside its data. */
size_t pk_spectral_scratch(const pk_spectral *op) {
  const int64_t in = spectrum(&op->in), out = spectrum(&op->out);
  return (size_t)(2 * (in + out) + (in > out ? in : out)) * sizeof(float);
}

int32_t pk_spectral_tiles(const pk_spectral *op) { return (int32_t)((op->rows + LANES - 1) / LANES); }

void pk_spectral_forward(int32_t level, const pk_spectral *op, const void *x, void *y, float alpha, int32_t part, int32_t parts,
                         float *scratch) {
  AT_LEVEL(level, spectral_forward)(op, x, y, alpha, pk_share(pk_spectral_tiles(op), 1, part, parts), scratch);
}

void pk_spectral_backward(int32_t level, const pk_spectral *op, const void *x, const void *dy, void *dx, float *dvalues,
                          float alpha, int32_t part, int32_t parts, float *scratch) {
  AT_LEVEL(level, spectral_backward)(op, x, dy, dx, dvalues, alpha, pk_share(pk_spectral_tiles(op), 1, part, parts), scratch);
}

#else

/* ---- tiles: t[c·LANES + j] = x[first + j, c] ---- */

static void NAME(load_tile)(int32_t act, const void *x, int64_t n, int64_t first, int64_t count, float *t) {
  for (int64_t j = 0; j < LANES; j++) {
    if (j >= count) {
      for (int64_t c = 0; c < n; c++) t[c * LANES + j] = 0;
      continue;
    }
    float values[WIDTH];
    FOR_VECTORS(c, m, 0, n) {
      vput(values, vload(act, x, (first + j) * n + c, m));
      for (int64_t i = 0; i < m; i++) t[(c + i) * LANES + j] = values[i];
    }
  }
}

static void NAME(add_tile)(int32_t act, void *y, int64_t n, int64_t first, int64_t count, const float *t, float alpha) {
  for (int64_t j = 0; j < count; j++) {
    float values[WIDTH] = {0};
    FOR_VECTORS(c, m, 0, n) {
      for (int64_t i = 0; i < m; i++) values[i] = t[(c + i) * LANES + j];
      vstore(act, y, (first + j) * n + c, m, vload(act, y, (first + j) * n + c, m) + alpha * vget(values));
    }
  }
}

/* a += f·b and the like, over the lanes of one value. */
#define EACH for (int64_t l = 0; l < LANES; l += WIDTH)

/* ---- Fourier: Stockham's algorithm, a pass for each factor p of the length, sign of the exponent `sign` ----
 * For q < m, k < s: y[k + s·(p·q + t)] = w_(p·m)^(q·t) · Σ_j x[k + s·(q + m·j)] · w_p^(j·t). */
static void NAME(pass)(const pk_transform *f, float sign, int64_t p, int64_t m, int64_t s, const float *ar, const float *ai,
                       float *br, float *bi) {
  const int64_t n = f->block, step = s * m * LANES;
  for (int64_t q = 0; q < m; q++) {
    for (int64_t k = 0; k < s; k++) {
      const int64_t from = (k + s * q) * LANES, to = (k + s * p * q) * LANES;
      for (int64_t t = 0; t < p; t++) {
        const int64_t turn = q * t % (p * m) * s % n;
        const float c = f->cosines[turn], d = sign * f->sines[turn];
        float *const yr = br + to + t * s * LANES, *const yi = bi + to + t * s * LANES;
        if (p == 4) {
          /* i^t: the sums over even and odd places, the latter turned by t quarters. */
          const float even = t % 2 ? -1.0f : 1.0f, side = t >= 2 ? -1.0f : 1.0f;
          EACH {
            const vf er = vget(ar + from + l) + even * vget(ar + from + 2 * step + l);
            const vf ei = vget(ai + from + l) + even * vget(ai + from + 2 * step + l);
            const vf or_ = vget(ar + from + step + l) + even * vget(ar + from + 3 * step + l);
            const vf oi = vget(ai + from + step + l) + even * vget(ai + from + 3 * step + l);
            const vf r = t % 2 ? er - (sign * side) * oi : er + side * or_;
            const vf i = t % 2 ? ei + (sign * side) * or_ : ei + side * oi;
            vput(yr + l, c * r - d * i);
            vput(yi + l, c * i + d * r);
          }
          continue;
        }
        EACH {
          vf r = 0, i = 0;
          for (int64_t j = 0; j < p; j++) {
            const int64_t w = j * t % p * (n / p);
            const float wc = f->cosines[w], wd = sign * f->sines[w];
            const vf xr = vget(ar + from + j * step + l), xi = vget(ai + from + j * step + l);
            r += wc * xr - wd * xi;
            i += wc * xi + wd * xr;
          }
          vput(yr + l, c * r - d * i);
          vput(yi + l, c * i + d * r);
        }
      }
    }
  }
}

/* In place over planes [n] of re and im, in blocks of the length. */
static void NAME(fourier)(const pk_transform *f, float sign, float *re, float *im, float *room) {
  const int64_t b = f->block, size = b * LANES;
  for (int64_t start = 0; start < f->n; start += b) {
    float *ar = re + start * LANES, *ai = im + start * LANES, *br = room, *bi = room + size;
    int64_t m = b, s = 1;
    for (int32_t i = 0; i < f->factor_count; i++) {
      const int64_t p = f->factors[i];
      m /= p;
      NAME(pass)(f, sign, p, m, s, ar, ai, br, bi);
      s *= p;
      float *const tr = ar, *const ti = ai;
      ar = br, ai = bi, br = tr, bi = ti;
    }
    if (f->factor_count % 2) {
      memcpy(re + start * LANES, ar, (size_t)size * sizeof(float));
      memcpy(im + start * LANES, ai, (size_t)size * sizeof(float));
    }
  }
}

/* ---- one level of wavelets: u[b·half + k] = Σ_j filter_b[j] · x[2k + j − shift] ---- */

static void NAME(wavelets)(const pk_transform *f, float *x, float *u, int32_t isAdjoint) {
  for (int64_t k = 0; k < f->size; k++) {
    const float *const filter = k < f->half ? f->low : f->high;
    float *const value = u + k * LANES;
    if (!isAdjoint) memset(value, 0, LANES * sizeof(float));
    for (int64_t j = 0; j < f->length; j++) {
      const int64_t i = 2 * (k % f->half) + j - f->shift;
      if (i < 0 || i >= f->n) continue;
      float *const place = x + i * LANES;
      if (isAdjoint) {
        EACH vput(place + l, vget(place + l) + filter[j] * vget(value + l));
      } else {
        EACH vput(value + l, vget(value + l) + filter[j] * vget(place + l));
      }
    }
  }
}

/* u = U·x of a tile that was loaded to u's beginning. */
static void NAME(analysis)(const pk_transform *f, float *u, float *room) {
  if (f->kind == PK_FOURIER) {
    float *const im = u + f->n * LANES;
    memset(im, 0, (size_t)(f->n * LANES) * sizeof(float));
    NAME(fourier)(f, 1, u, im, room);
  } else if (f->kind == PK_WAVELETS) {
    memcpy(room, u, (size_t)(f->n * LANES) * sizeof(float));
    NAME(wavelets)(f, room, u, 0);
  }
}

/* x = Uᵀ·u, left at u's beginning: of a Fourier transform the real part of that with the other sign. */
static void NAME(synthesis)(const pk_transform *f, float *u, float *room) {
  if (f->kind == PK_FOURIER) {
    NAME(fourier)(f, -1, u, u + f->n * LANES, room);
  } else if (f->kind == PK_WAVELETS) {
    memset(room, 0, (size_t)(f->n * LANES) * sizeof(float));
    NAME(wavelets)(f, room, u, 1);
    memcpy(u, room, (size_t)(f->n * LANES) * sizeof(float));
  }
}

/* v += S·u (or u += Sᵀ·v). Of Fourier transforms the values are complex (re, then im where there are any), and what the
 * output side transforms back is the conjugate: v = conj(S·u). */
static void NAME(sparse)(const pk_spectral *op, float *u, float *v, int32_t isAdjoint) {
  const int64_t in = op->in.size * LANES, out = op->out.size * LANES;
  const int32_t isComplex = op->in.kind == PK_FOURIER;
  memset(isAdjoint ? u : v, 0, (size_t)((isAdjoint ? in : out) * (isComplex ? 2 : 1)) * sizeof(float));
  for (int64_t p = 0; p < op->count; p++) {
    float *const a = u + op->columns[p] * (int64_t)LANES, *const b = v + op->rows_of[p] * (int64_t)LANES;
    const float c = op->values[p];
    if (!isComplex) {
      if (isAdjoint) {
        EACH vput(a + l, vget(a + l) + c * vget(b + l));
      } else {
        EACH vput(b + l, vget(b + l) + c * vget(a + l));
      }
      continue;
    }
    const float d = op->has_imaginary ? op->values[op->count + p] : 0;
    if (isAdjoint) {
      EACH {
        const vf r = vget(b + l), i = vget(b + out + l);
        vput(a + l, vget(a + l) + c * r - d * i);
        vput(a + in + l, vget(a + in + l) - d * r - c * i);
      }
    } else {
      EACH {
        const vf r = vget(a + l), i = vget(a + in + l);
        vput(b + l, vget(b + l) + c * r - d * i);
        vput(b + out + l, vget(b + out + l) - c * i - d * r);
      }
    }
  }
}

/* dvalues[p] += alpha · ⟨what the value multiplies, dv⟩. */
static void NAME(gradients)(const pk_spectral *op, const float *u, const float *dv, float *dvalues, float alpha) {
  const int64_t in = op->in.size * LANES, out = op->out.size * LANES;
  const int32_t isComplex = op->in.kind == PK_FOURIER;
  for (int64_t p = 0; p < op->count; p++) {
    const float *const a = u + op->columns[p] * (int64_t)LANES, *const b = dv + op->rows_of[p] * (int64_t)LANES;
    vf re = 0, im = 0;
    EACH {
      const vf ar = vget(a + l), br = vget(b + l);
      re += ar * br;
      if (!isComplex) continue;
      const vf ai = vget(a + in + l), bi = vget(b + out + l);
      re -= ai * bi;
      im -= ai * br + ar * bi;
    }
    dvalues[p] += alpha * vsum(re);
    if (op->has_imaginary) dvalues[op->count + p] += alpha * vsum(im);
  }
}

static void NAME(spectral_forward)(const pk_spectral *op, const void *x, void *y, float alpha, pk_range tiles, float *scratch) {
  float *const u = scratch, *const v = u + spectrum(&op->in), *const room = v + spectrum(&op->out);
  for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
    const int64_t first = tile * LANES, count = pk_min(LANES, op->rows - first);
    NAME(load_tile)(op->act, x, op->in.n, first, count, u);
    NAME(analysis)(&op->in, u, room);
    NAME(sparse)(op, u, v, 0);
    NAME(synthesis)(&op->out, v, room);
    NAME(add_tile)(op->act, y, op->out.n, first, count, v, alpha);
  }
}

static void NAME(spectral_backward)(const pk_spectral *op, const void *x, const void *dy, void *dx, float *dvalues, float alpha,
                                    pk_range tiles, float *scratch) {
  float *const u = scratch, *const du = u + spectrum(&op->in), *const dv = du + spectrum(&op->in),
               *const room = dv + spectrum(&op->out);
  for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
    const int64_t first = tile * LANES, count = pk_min(LANES, op->rows - first);
    NAME(load_tile)(op->act, dy, op->out.n, first, count, dv);
    NAME(analysis)(&op->out, dv, room);
    if (dvalues) {
      NAME(load_tile)(op->act, x, op->in.n, first, count, u);
      NAME(analysis)(&op->in, u, room);
      NAME(gradients)(op, u, dv, dvalues, alpha);
    }
    if (!dx) continue;
    if (op->turns_gradient) {
      float *const im = dv + op->out.n * LANES;
      for (int64_t i = 0; i < op->out.n * LANES; i++) im[i] = -im[i];
    }
    NAME(sparse)(op, du, dv, 1);
    NAME(synthesis)(&op->in, du, room);
    NAME(add_tile)(op->act, dx, op->in.n, first, count, du, alpha);
  }
}

#endif
