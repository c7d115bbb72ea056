/* Sums, products, column sums, gathering and scattering of rows. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "elementwise.c"
#include "formats.h"
#include "levels.h"

void pk_axpby(int32_t level, int32_t act, float a, const void *x, float b, void *y, size_t count, int32_t part,
              int32_t parts) {
  AT_LEVEL(level, axpby)(act, a, x, b, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_add(int32_t level, int32_t act, const void *x1, const void *x2, void *y, size_t count, int32_t part,
            int32_t parts) {
  AT_LEVEL(level, add)(act, x1, x2, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_mul(int32_t level, int32_t act, const void *x1, const void *x2, void *y, size_t count, int32_t part,
            int32_t parts) {
  AT_LEVEL(level, mul)(act, x1, x2, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_scale_columns(int32_t level, int32_t act, const void *x, const float *scale, const float *shift, void *y,
                      int32_t accumulate, int64_t rows, int64_t n, int32_t part, int32_t parts) {
  AT_LEVEL(level, scale_columns)(act, x, scale, shift, y, accumulate, n, pk_share(rows, 1, part, parts));
}

void pk_column_sums(int32_t level, int32_t act, const void *x1, const void *x2, float *out, int64_t rows, int64_t n,
                    int32_t part, int32_t parts) {
  AT_LEVEL(level, column_sums)(act, x1, x2, out, rows, n, pk_share(n, PK_GRAIN, part, parts));
}

void pk_scale_rows(int32_t level, int32_t act, const void *x, const float *s, void *y, int64_t rows, int64_t n,
                   int32_t part, int32_t parts) {
  AT_LEVEL(level, scale_rows)(act, x, s, y, n, pk_share(rows, 1, part, parts));
}

void pk_gather_rows(int32_t level, int32_t w_type, const void *w, int64_t w_row_bytes, int64_t n, const int32_t *ids,
                    int64_t count, float scale, int32_t act, void *y, int32_t part, int32_t parts) {
  const pk_range share = pk_share(count, 1, part, parts);
  if (w_type == PK_F32 || w_type == PK_BF16) {
    AT_LEVEL(level, gather_plain)(w_type, w, w_row_bytes, n, ids, scale, act, y, share);
  } else {
    AT_LEVEL(level, gather_blocks)(pk_decoder(level, w_type), w, w_row_bytes, n, ids, scale, act, y, share);
  }
}

void pk_scatter_add_rows(int32_t level, int32_t act, const void *dy, const int32_t *ids, int64_t count, int64_t n,
                         float scale, float *dtable, int32_t part, int32_t parts) {
  AT_LEVEL(level, scatter_add_rows)(act, dy, ids, count, n, scale, dtable, pk_share(n, PK_GRAIN, part, parts));
}

void pk_changed_weights(int32_t level, const float *w, const float *p, const float *q, float scale, int32_t type, void *y, size_t count,
                        int32_t part, int32_t parts) {
  AT_LEVEL(level, changed_weights)(w, p, q, scale, type, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

#else

static void NAME(axpby)(int32_t act, float a, const void *x, float b, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf v = a * vload(act, x, i, n);
    if (b != 0) v += b * vload(act, y, i, n); /* b = 0 overwrites: y may hold anything */
    vstore(act, y, i, n, v);
  }
}

static void NAME(add)(int32_t act, const void *x1, const void *x2, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) vstore(act, y, i, n, vload(act, x1, i, n) + vload(act, x2, i, n));
}

static void NAME(mul)(int32_t act, const void *x1, const void *x2, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) vstore(act, y, i, n, vload(act, x1, i, n) * vload(act, x2, i, n));
}

/* To bf16 by chance: a change below half a step is not lost but comes out in so many places. Infinities and NaN are rounded as ever. */
static void NAME(changed_weights)(const float *w, const float *p, const float *q, float scale, int32_t type, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    const vf x = vload(PK_F32, w, i, n);
    vf v = x + scale * (x * vload(PK_F32, p, i, n));
    if (q) v += scale * vload(PK_F32, q, i, n);
    if (type == PK_F32) {
      vstore(type, y, i, n, v);
      continue;
    }
    vu chance = __builtin_bit_cast(vu, vlanes()) + (uint32_t)i;
    PK_DRAW(chance);
    const vu bits = vbits(v);
    vstore(type, y, i, n, (bits & 0x7f800000) == 0x7f800000 ? v : vfloat((bits + chance) & 0xffff0000));
  }
}

static void NAME(scale_columns)(int32_t act, const void *x, const float *scale, const float *shift, void *y,
                                int32_t accumulate, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    FOR_VECTORS(c, m, 0, n) {
      vf v = vload(act, x, r * n + c, m);
      if (scale) v *= vload(PK_F32, scale, c, m);
      if (shift) v += vload(PK_F32, shift, c, m);
      if (accumulate) v += vload(act, y, r * n + c, m);
      vstore(act, y, r * n + c, m, v);
    }
  }
}

static void NAME(column_sums)(int32_t act, const void *x1, const void *x2, float *out, int64_t rows, int64_t n,
                              pk_range columns) {
  FOR_VECTORS(c, m, columns.begin, columns.end) {
    vf sum = 0;
    for (int64_t r = 0; r < rows; r++) {
      vf v = vload(act, x1, r * n + c, m);
      if (x2) v *= vload(act, x2, r * n + c, m);
      sum += v;
    }
    vstore(PK_F32, out, c, m, vload(PK_F32, out, c, m) + sum);
  }
}

static void NAME(scale_rows)(int32_t act, const void *x, const float *s, void *y, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    FOR_VECTORS(c, m, 0, n) vstore(act, y, r * n + c, m, vload(act, x, r * n + c, m) * s[r]);
  }
}

static void NAME(gather_plain)(int32_t type, const void *w, int64_t row_bytes, int64_t n, const int32_t *ids,
                               float scale, int32_t act, void *y, pk_range share) {
  for (int64_t r = share.begin; r < share.end; r++) {
    const void *row = (const uint8_t *)w + ids[r] * row_bytes;
    FOR_VECTORS(c, m, 0, n) vstore(act, y, r * n + c, m, vload(type, row, c, m) * scale);
  }
}

/* Any other format: decoded in pieces. */
static void NAME(gather_blocks)(pk_decode_fn *decode, const void *w, int64_t row_bytes, int64_t n,
                                const int32_t *ids, float scale, int32_t act, void *y, pk_range share) {
  float values[256];
  for (int64_t r = share.begin; r < share.end; r++) {
    const uint8_t *row = (const uint8_t *)w + ids[r] * row_bytes;
    for (int64_t c = 0; c < n; c += 256) {
      const int64_t count = pk_min(256, n - c);
      decode(row, c, count, values);
      FOR_VECTORS(i, m, 0, count) vstore(act, y, r * n + c + i, m, vload(PK_F32, values, i, m) * scale);
    }
  }
}

static void NAME(scatter_add_rows)(int32_t act, const void *dy, const int32_t *ids, int64_t count, int64_t n,
                                   float scale, float *dtable, pk_range columns) {
  for (int64_t r = 0; r < count; r++) {
    float *row = dtable + ids[r] * n;
    FOR_VECTORS(c, m, columns.begin, columns.end) {
      vstore(PK_F32, row, c, m, vload(PK_F32, row, c, m) + scale * vload(act, dy, r * n + c, m));
    }
  }
}

#endif
