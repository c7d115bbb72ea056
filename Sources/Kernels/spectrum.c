/* Sparse matrices between transforms: y += alpha · Vᵀ·S·U·x for each row x, where U and V are Fourier transforms, one level of
 * wavelets, or nothing, and S has values at given places. A tile of rows is turned round, so that each value of a vector
 * is LANES neighbouring floats and every step is plain vector arithmetic. A tile has twice LANES rows, in two planes.
 *
 * To a Fourier transform the planes are re and im: ΔW is real, so one complex vector carries two rows through both transforms at the price of one.
 * As S·U·x alone is not what a real vector transforms to, each value of S also stands, conjugated, at the opposite
 * frequencies: ΔW = ½·(VᵀSU + conj(VᵀSU)). */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "spectrum.c"
#include "formats.h"

/* Two planes of 1536 values, and a transform's room beside them, are 400 kB. */
#define LANES 16

static inline int64_t plane(const pk_transform *f) { return f->size * LANES; }

#include "levels.h"

/* Spectra of both sides, their gradients' room, and room for a transform beside its data. */
size_t pk_spectral_scratch(const pk_spectral *op) {
  const int64_t in = plane(&op->in), out = plane(&op->out);
  return (size_t)(4 * (in + out) + 2 * (in > out ? in : out)) * sizeof(float);
}

int32_t pk_spectral_tiles(const pk_spectral *op) { return (int32_t)((op->rows + 2 * LANES - 1) / (2 * LANES)); }

void pk_spectral_forward(int32_t level, const pk_spectral *op, const void *x, void *y, float alpha, int32_t part, int32_t parts,
                         float *scratch) {
  AT_LEVEL(level, spectral_forward)(op, x, y, alpha, pk_share(pk_spectral_tiles(op), 1, part, parts), scratch);
}

void pk_spectral_backward(int32_t level, const pk_spectral *op, const void *x, const void *dy, void *dx, float *dvalues,
                          float alpha, int32_t part, int32_t parts, float *scratch) {
  AT_LEVEL(level, spectral_backward)(op, x, dy, dx, dvalues, alpha, pk_share(pk_spectral_tiles(op), 1, part, parts), scratch);
}

#else

#include "turned.h"

/* y[first + j, c] += alpha · t[c·LANES + j] */
static void NAME(add_turned_back)(int32_t act, void *y, int64_t n, int64_t first, int64_t count, const float *t, float alpha) {
  for (int64_t j = 0; j < pk_min(LANES, count); j += WIDTH) {
    FOR_VECTORS(c, m, 0, n) {
      vu square[WIDTH] = {0};
      for (int64_t i = 0; i < m; i++) memcpy(&square[i], t + (c + i) * LANES + j, sizeof(vu));
      transpose_square(square);
#pragma clang loop unroll(disable)
      for (int64_t i = 0; i < pk_min(WIDTH, count - j); i++) {
        const int64_t at = (first + j + i) * n + c;
        vstore(act, y, at, m, vload(act, y, at, m) + alpha * vfloat(square[i]));
      }
    }
  }
}

static void NAME(load)(const pk_spectral *op, const pk_transform *f, const void *x, int64_t first, float *u) {
  for (int i = 0; i < 2; i++, first += LANES) NAME(load_turned)(op->act, x, f->n, first, op->rows - first, u + i * plane(f));
}

static void NAME(add)(const pk_spectral *op, const pk_transform *f, void *y, int64_t first, const float *u, float alpha) {
  for (int i = 0; i < 2; i++, first += LANES) NAME(add_turned_back)(op->act, y, f->n, first, op->rows - first, u + i * plane(f), alpha);
}

/* a += f·b and the like, over the lanes of one value. */
#define EACH for (int64_t l = 0; l < LANES; l += WIDTH)

/* ---- Fourier: Stockham's algorithm, a pass for each factor p of the length ----
 * For q < m, k < s: y[k + s·(p·q + t)] = w^(s·q·t) · Σ_j x[k + s·(q + m·j)] · e^(2πi·j·t/p), w = e^(2πi/n). */
static void NAME(pass)(const pk_transform *f, int64_t p, int64_t m, int64_t s, const float *ar, const float *ai, float *br, float *bi) {
  const int64_t n = f->block, step = s * m * LANES;
  for (int64_t q = 0; q < m; q++) {
    const float *const c = f->cosines, *const d = f->sines;
    const int64_t w = s * q;
    for (int64_t k = 0; k < s; k++) {
      const float *const xr = ar + (k + s * q) * LANES, *const xi = ai + (k + s * q) * LANES;
      float *const yr = br + (k + s * p * q) * LANES, *const yi = bi + (k + s * p * q) * LANES;
      if (p == 4) {
        EACH {
          const vf r0 = vget(xr + l), r1 = vget(xr + step + l), r2 = vget(xr + 2 * step + l), r3 = vget(xr + 3 * step + l);
          const vf i0 = vget(xi + l), i1 = vget(xi + step + l), i2 = vget(xi + 2 * step + l), i3 = vget(xi + 3 * step + l);
          const vf er = r0 + r2, ei = i0 + i2, fr = r0 - r2, fi = i0 - i2, gr = r1 + r3, gi = i1 + i3, hr = r1 - r3, hi = i1 - i3;
          const vf tr[3] = {fr - hi, er - gr, fr + hi}, ti[3] = {fi + hr, ei - gi, fi - hr};
          vput(yr + l, er + gr);
          vput(yi + l, ei + gi);
          for (int t = 0; t < 3; t++) {
            const float wc = c[w * (t + 1)], wd = d[w * (t + 1)];
            vput(yr + (t + 1) * s * LANES + l, wc * tr[t] - wd * ti[t]);
            vput(yi + (t + 1) * s * LANES + l, wc * ti[t] + wd * tr[t]);
          }
        }
        continue;
      }
      for (int64_t t = 0; t < p; t++) {
        EACH {
          vf r = 0, i = 0;
          for (int64_t j = 0; j < p; j++) {
            const int64_t turn = j * t % p * (n / p);
            const vf zr = vget(xr + j * step + l), zi = vget(xi + j * step + l);
            r += c[turn] * zr - d[turn] * zi;
            i += c[turn] * zi + d[turn] * zr;
          }
          vput(yr + t * s * LANES + l, c[w * t] * r - d[w * t] * i);
          vput(yi + t * s * LANES + l, c[w * t] * i + d[w * t] * r);
        }
      }
    }
  }
}

/* In place over planes [n] of re and im, in blocks of the length. */
static void NAME(fourier)(const pk_transform *f, float *re, float *im, float *room) {
  const int64_t b = f->block, size = b * LANES;
  for (int64_t start = 0; start < f->n; start += b) {
    float *ar = re + start * LANES, *ai = im + start * LANES, *br = room, *bi = room + size;
    int64_t m = b, s = 1;
    for (int32_t i = 0; i < f->factor_count; i++) {
      const int64_t p = f->factors[i];
      m /= p;
      NAME(pass)(f, p, m, s, ar, ai, br, bi);
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

/* u = U·x of a tile that was loaded to u's planes. */
static void NAME(analysis)(const pk_transform *f, float *u, float *room) {
  if (f->kind == PK_FOURIER) NAME(fourier)(f, u, u + plane(f), room);
  for (int i = 0; i < 2 && f->kind == PK_WAVELETS; i++, u += plane(f)) {
    memcpy(room, u, (size_t)(f->n * LANES) * sizeof(float));
    NAME(wavelets)(f, room, u, 0);
  }
}

/* x = Uᵀ·u, in u's planes. */
static void NAME(synthesis)(const pk_transform *f, float *u, float *room) {
  if (f->kind == PK_FOURIER) NAME(fourier)(f, u, u + plane(f), room);
  for (int i = 0; i < 2 && f->kind == PK_WAVELETS; i++, u += plane(f)) {
    memset(room, 0, (size_t)(f->n * LANES) * sizeof(float));
    NAME(wavelets)(f, room, u, 1);
    memcpy(u, room, (size_t)(f->n * LANES) * sizeof(float));
  }
}

/* ---- the sparse matrix ---- */

enum { NAME(each) = LANES / WIDTH };
#define EACH_VECTOR _Pragma("unroll") for (int i = 0; i < NAME(each); i++)

/* A place of a spectrum: both planes. */
typedef struct NAME(pair) {
  vf re[NAME(each)], im[NAME(each)];
} NAME(pair);

INLINE NAME(pair) NAME(take)(const float *at, int64_t plane) {
  NAME(pair) p;
  EACH_VECTOR p.re[i] = vget(at + i * WIDTH), p.im[i] = vget(at + plane + i * WIDTH);
  return p;
}

INLINE void NAME(put)(float *at, int64_t plane, NAME(pair) p) {
  EACH_VECTOR vput(at + i * WIDTH, p.re[i]), vput(at + plane + i * WIDTH, p.im[i]);
}

/* sum + (c + i·d)·x; without transforms the planes have nothing to do with each other, and d is 0. */
INLINE NAME(pair) NAME(turned)(NAME(pair) sum, NAME(pair) x, float c, float d) {
  EACH_VECTOR sum.re[i] += c * x.re[i] - d * x.im[i], sum.im[i] += c * x.im[i] + d * x.re[i];
  return sum;
}

INLINE NAME(pair) NAME(scaled)(NAME(pair) sum, NAME(pair) x, float c) {
  EACH_VECTOR sum.re[i] += c * x.re[i], sum.im[i] += c * x.im[i];
  return sum;
}

/* v = S·u, or u = Sᵀ·v; of Fourier transforms the real part of the operator, see above. Entries stand by rows: v's places stay in registers. */
static void NAME(sparse)(const pk_spectral *op, float *u, float *v, int32_t is_adjoint) {
  const int64_t in = plane(&op->in), out = plane(&op->out);
  const pk_entries e = op->entries;
  const int32_t is_complex = op->in.kind == PK_FOURIER, turns = is_adjoint && op->turns_gradient;
  memset(is_adjoint ? u : v, 0, (size_t)(2 * (is_adjoint ? in : out)) * sizeof(float));
  for (int64_t p = 0; p < e.count;) {
    const int32_t row = e.rows[p];
    float *const at = v + row * LANES, *const opposite = v + op->opposite_rows[p] * LANES;
    NAME(pair) own = {0}, other = {0};
    if (is_adjoint) own = NAME(take)(turns ? opposite : at, out), other = NAME(take)(turns ? at : opposite, out);
    for (; p < e.count && e.rows[p] == row; p++) {
      const int64_t value = e.order ? e.order[p] : p;
      const float c = op->values[value], d = op->has_imaginary ? op->values[e.count + value] : 0;
      float *const a = u + e.columns[p] * LANES, *const b = u + op->opposite_columns[p] * LANES;
      if (is_adjoint) {
        if (!is_complex) {
          NAME(put)(a, in, NAME(scaled)(NAME(take)(a, in), own, c));
          continue;
        }
        NAME(put)(a, in, NAME(turned)(NAME(take)(a, in), own, c / 2, d / 2));
        NAME(put)(b, in, NAME(turned)(NAME(take)(b, in), other, c / 2, -d / 2));
      } else if (is_complex) {
        own = NAME(turned)(own, NAME(take)(a, in), c / 2, d / 2);
        other = NAME(turned)(other, NAME(take)(b, in), c / 2, -d / 2);
      } else {
        own = NAME(scaled)(own, NAME(take)(a, in), c);
      }
    }
    if (is_adjoint) continue;
    NAME(put)(at, out, NAME(scaled)(own, NAME(take)(at, out), 1));
    if (is_complex) NAME(put)(opposite, out, NAME(scaled)(other, NAME(take)(opposite, out), 1));
  }
}

/* dvalues[p] += alpha · Σ over rows of what the value multiplies, u, times dv. Of two rows in one complex vector (capitals: the opposite
 * frequency) that is u₁·v₁ + u₂·v₂ = ½·(u·conj(V) + conj(U)·v). */
static void NAME(gradients)(const pk_spectral *op, const float *u, const float *dv, float *dvalues, float alpha) {
  const int64_t in = plane(&op->in), out = plane(&op->out);
  const pk_entries e = op->entries;
  const int32_t is_complex = op->in.kind == PK_FOURIER;
  NAME(lane_sums) sums = {.to = dvalues, .factor = is_complex ? alpha / 2 : alpha};
  for (int64_t p = 0; p < e.count;) {
    const int32_t row = e.rows[p];
    const NAME(pair) v = NAME(take)(dv + row * LANES, out), V = NAME(take)(dv + op->opposite_rows[p] * LANES, out);
    for (; p < e.count && e.rows[p] == row; p++) {
      const int64_t value = e.order ? e.order[p] : p;
      const NAME(pair) a = NAME(take)(u + e.columns[p] * LANES, in);
      vf re = 0, im = 0;
      if (!is_complex) {
        EACH_VECTOR re += a.re[i] * v.re[i] + a.im[i] * v.im[i];
        NAME(add_sum)(&sums, value, re);
        continue;
      }
      const NAME(pair) b = NAME(take)(u + op->opposite_columns[p] * LANES, in);
      EACH_VECTOR {
        re += a.re[i] * V.re[i] + a.im[i] * V.im[i] + b.re[i] * v.re[i] + b.im[i] * v.im[i];
        im += a.re[i] * V.im[i] - a.im[i] * V.re[i] + b.im[i] * v.re[i] - b.re[i] * v.im[i];
      }
      NAME(add_sum)(&sums, value, re);
      if (op->has_imaginary) NAME(add_sum)(&sums, e.count + value, im);
    }
  }
  NAME(finish_sums)(&sums);
}

static void NAME(spectral_forward)(const pk_spectral *op, const void *x, void *y, float alpha, pk_range tiles, float *scratch) {
  float *const u = scratch, *const v = u + 2 * plane(&op->in), *const room = v + 2 * plane(&op->out);
  for (int64_t first = 2 * LANES * tiles.begin; first < 2 * LANES * tiles.end; first += 2 * LANES) {
    NAME(load)(op, &op->in, x, first, u);
    NAME(analysis)(&op->in, u, room);
    NAME(sparse)(op, u, v, 0);
    NAME(synthesis)(&op->out, v, room);
    NAME(add)(op, &op->out, y, first, v, alpha);
  }
}

static void NAME(spectral_backward)(const pk_spectral *op, const void *x, const void *dy, void *dx, float *dvalues, float alpha,
                                    pk_range tiles, float *scratch) {
  float *const u = scratch, *const du = u + 2 * plane(&op->in), *const dv = du + 2 * plane(&op->in), *const room = dv + 2 * plane(&op->out);
  for (int64_t first = 2 * LANES * tiles.begin; first < 2 * LANES * tiles.end; first += 2 * LANES) {
    NAME(load)(op, &op->out, dy, first, dv);
    NAME(analysis)(&op->out, dv, room);
    if (dvalues) {
      NAME(load)(op, &op->in, x, first, u);
      NAME(analysis)(&op->in, u, room);
      NAME(gradients)(op, u, dv, dvalues, alpha);
    }
    if (!dx) continue;
    NAME(sparse)(op, du, dv, 1);
    NAME(synthesis)(&op->in, du, room);
    NAME(add)(op, &op->in, dx, first, du, alpha);
  }
}

#endif
