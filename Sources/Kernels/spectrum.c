/* Sparse matrices between transforms: y += alpha · Vᵀ·S·U·x for each row x, where U and V are Fourier transforms, one level of
 * wavelets, or nothing, and S has values at given places. A tile of rows is turned round, so that each value of a vector
 * is LANES neighbouring floats and every step is plain vector arithmetic.
 *
 * Of Fourier transforms a tile has twice as many rows: ΔW is real, so one complex vector carries two rows, re and im, through both transforms
 * at the price of one. As S·U·x alone is not what a real vector transforms to, each value of S also stands, conjugated, at the opposite
 * frequencies: ΔW = ½·(VᵀSU + conj(VᵀSU)). */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "spectrum.c"
#include "formats.h"

#define LANES 32

static inline int64_t planes(const pk_transform *f) { return f->kind == PK_FOURIER ? 2 : 1; }
static inline int64_t spectrum(const pk_transform *f) { return planes(f) * f->size * LANES; }
static inline int64_t rows_of_tile(const pk_spectral *op) { return planes(&op->in) * LANES; }

#include "levels.h"

/* Spectra of both sides, their gradients' room, and room for a transform beside its data. */
size_t pk_spectral_scratch(const pk_spectral *op) {
  const int64_t in = spectrum(&op->in), out = spectrum(&op->out);
  return (size_t)(2 * (in + out) + (in > out ? in : out)) * sizeof(float);
}

int32_t pk_spectral_tiles(const pk_spectral *op) { return (int32_t)((op->rows + rows_of_tile(op) - 1) / rows_of_tile(op)); }

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
  for (int64_t j = 0; j < count; j += WIDTH) {
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

/* Both planes of a Fourier tile: the first LANES rows are re, the others im. */
static void NAME(load)(const pk_spectral *op, const pk_transform *f, const void *x, int64_t first, float *u) {
  for (int64_t plane = 0; plane < planes(f); plane++, first += LANES) {
    NAME(load_turned)(op->act, x, f->n, first, pk_min(LANES, op->rows - first), u + plane * f->n * LANES);
  }
}

static void NAME(add)(const pk_spectral *op, const pk_transform *f, void *y, int64_t first, const float *u, float alpha) {
  for (int64_t plane = 0; plane < planes(f); plane++, first += LANES) {
    NAME(add_turned_back)(op->act, y, f->n, first, pk_min(LANES, op->rows - first), u + plane * f->n * LANES, alpha);
  }
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

/* u = U·x of a tile that was loaded to u's beginning. */
static void NAME(analysis)(const pk_transform *f, float *u, float *room) {
  if (f->kind == PK_FOURIER) {
    NAME(fourier)(f, u, u + f->n * LANES, room);
  } else if (f->kind == PK_WAVELETS) {
    memcpy(room, u, (size_t)(f->n * LANES) * sizeof(float));
    NAME(wavelets)(f, room, u, 0);
  }
}

/* x = Uᵀ·u, at u's beginning. */
static void NAME(synthesis)(const pk_transform *f, float *u, float *room) {
  if (f->kind == PK_FOURIER) {
    NAME(fourier)(f, u, u + f->n * LANES, room);
  } else if (f->kind == PK_WAVELETS) {
    memset(room, 0, (size_t)(f->n * LANES) * sizeof(float));
    NAME(wavelets)(f, room, u, 1);
    memcpy(u, room, (size_t)(f->n * LANES) * sizeof(float));
  }
}

/* The opposite frequency in its block. */
INLINE int64_t NAME(opposite)(const pk_transform *f, int32_t k) {
  const int32_t own = k % (int32_t)f->block;
  return own ? k - 2 * own + f->block : k;
}

/* to += (c + i·d)·from */
INLINE void NAME(add_turned)(float *to, int64_t to_plane, const float *from, int64_t from_plane, float c, float d) {
  EACH {
    const vf r = vget(from + l), i = vget(from + from_plane + l);
    vput(to + l, vget(to + l) + c * r - d * i);
    vput(to + to_plane + l, vget(to + to_plane + l) + c * i + d * r);
  }
}

/* v = S·u, or u = Sᵀ·v; of Fourier transforms the real part of the operator, see above. */
static void NAME(sparse)(const pk_spectral *op, float *u, float *v, int32_t isAdjoint) {
  const int64_t in = op->in.size * LANES, out = op->out.size * LANES;
  memset(isAdjoint ? u : v, 0, (size_t)((isAdjoint ? in : out) * planes(&op->in)) * sizeof(float));
  const pk_entries e = op->entries;
  for (int64_t p = 0; p < e.count; p++) {
    const int64_t value = e.order ? e.order[p] : p;
    const int32_t column = e.columns[p], row = e.rows[p];
    float *const a = u + column * (int64_t)LANES, *const b = v + row * (int64_t)LANES;
    const float c = op->values[value];
    if (op->in.kind == PK_FOURIER) {
      const float d = op->has_imaginary ? op->values[e.count + value] : 0;
      float *const ua = u + NAME(opposite)(&op->in, column) * LANES, *const vb = v + NAME(opposite)(&op->out, row) * LANES;
      if (isAdjoint) {
        NAME(add_turned)(a, in, op->turns_gradient ? vb : b, out, c / 2, d / 2);
        NAME(add_turned)(ua, in, op->turns_gradient ? b : vb, out, c / 2, -d / 2);
      } else {
        NAME(add_turned)(b, out, a, in, c / 2, d / 2);
        NAME(add_turned)(vb, out, ua, in, c / 2, -d / 2);
      }
    } else if (isAdjoint) {
      EACH vput(a + l, vget(a + l) + c * vget(b + l));
    } else {
      EACH vput(b + l, vget(b + l) + c * vget(a + l));
    }
  }
}

/* dvalues[p] += alpha · Σ over rows of what the value multiplies, u, times dv. Of two rows in one complex vector (capitals: the opposite
 * frequency) that is u₁·v₁ + u₂·v₂ = ½·(u·conj(V) + conj(U)·v). */
static void NAME(gradients)(const pk_spectral *op, const float *u, const float *dv, float *dvalues, float alpha) {
  const int64_t in = op->in.size * LANES, out = op->out.size * LANES;
  const pk_entries e = op->entries;
  for (int64_t p = 0; p < e.count; p++) {
    const int64_t value = e.order ? e.order[p] : p;
    const int32_t column = e.columns[p], row = e.rows[p];
    const float *const a = u + column * (int64_t)LANES, *const b = dv + row * (int64_t)LANES;
    vf re = 0, im = 0;
    if (op->in.kind == PK_FOURIER) {
      const float *const ua = u + NAME(opposite)(&op->in, column) * LANES, *const vb = dv + NAME(opposite)(&op->out, row) * LANES;
      EACH {
        const vf ar = vget(a + l), ai = vget(a + in + l), er = vget(ua + l), ei = vget(ua + in + l);
        const vf br = vget(b + l), bi = vget(b + out + l), gr = vget(vb + l), gi = vget(vb + out + l);
        re += ar * gr + ai * gi + er * br + ei * bi;
        im += ar * gi - ai * gr + ei * br - er * bi;
      }
      re *= 0.5f;
      if (op->has_imaginary) dvalues[e.count + value] += 0.5f * alpha * vsum(im);
    } else {
      EACH re += vget(a + l) * vget(b + l);
    }
    dvalues[value] += alpha * vsum(re);
  }
}

static void NAME(spectral_forward)(const pk_spectral *op, const void *x, void *y, float alpha, pk_range tiles, float *scratch) {
  float *const u = scratch, *const v = u + spectrum(&op->in), *const room = v + spectrum(&op->out);
  for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
    const int64_t first = tile * rows_of_tile(op);
    NAME(load)(op, &op->in, x, first, u);
    NAME(analysis)(&op->in, u, room);
    NAME(sparse)(op, u, v, 0);
    NAME(synthesis)(&op->out, v, room);
    NAME(add)(op, &op->out, y, first, v, alpha);
  }
}

static void NAME(spectral_backward)(const pk_spectral *op, const void *x, const void *dy, void *dx, float *dvalues, float alpha,
                                    pk_range tiles, float *scratch) {
  float *const u = scratch, *const du = u + spectrum(&op->in), *const dv = du + spectrum(&op->in),
               *const room = dv + spectrum(&op->out);
  for (int64_t tile = tiles.begin; tile < tiles.end; tile++) {
    const int64_t first = tile * rows_of_tile(op);
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
