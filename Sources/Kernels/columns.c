/* Columns of a matrix in another order, repeated or summed. Memory movement only, so there is one version for all
 * processors. */
#include <string.h>

#include "half.h"
#include "kernels.h"
#include "share.h"

void pk_gather_columns(int32_t act, const void *x, const int32_t *from, void *y, int64_t rows, int64_t n, int64_t m,
                       int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    if (act == PK_F32) {
      const float *row = (const float *)x + r * n;
      float *to = (float *)y + r * m;
      for (int64_t c = 0; c < m; c++) to[c] = row[from[c]];
    } else {
      const uint16_t *row = (const uint16_t *)x + r * n;
      uint16_t *to = (uint16_t *)y + r * m;
      for (int64_t c = 0; c < m; c++) to[c] = row[from[c]];
    }
  }
}

void pk_scatter_columns(int32_t act, const void *x, const int32_t *to, float *y, int64_t rows, int64_t n, int64_t m,
                        int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    float *sums = y + r * m;
    for (int64_t c = 0; c < m; c++) sums[c] = 0;
    if (act == PK_F32) {
      const float *row = (const float *)x + r * n;
      for (int64_t c = 0; c < n; c++) sums[to[c]] += row[c];
    } else {
      const uint16_t *row = (const uint16_t *)x + r * n;
      for (int64_t c = 0; c < n; c++) sums[to[c]] += pk_bf16_to_f32(row[c]);
    }
  }
}

/* Squares of 8 by 8 words and of 4 by 4 floats are turned in registers, what is left over one by one. */
typedef uint16_t words __attribute__((vector_size(16)));
typedef float floats __attribute__((vector_size(16)));

#define LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)

/* Interleaving row i with row i + 4 three times moves every word to its place. */
static void turn_words(const uint16_t *x, int64_t ldx, uint16_t *y, int64_t ldy) {
  words a[8], b[8];
  for (int i = 0; i < 8; i++) memcpy(&a[i], x + i * ldx, 16);
  for (int i = 0; i < 4; i++) b[2 * i] = LOW(a[i], a[i + 4]), b[2 * i + 1] = HIGH(a[i], a[i + 4]);
  for (int i = 0; i < 4; i++) a[2 * i] = LOW(b[i], b[i + 4]), a[2 * i + 1] = HIGH(b[i], b[i + 4]);
  for (int i = 0; i < 4; i++) b[2 * i] = LOW(a[i], a[i + 4]), b[2 * i + 1] = HIGH(a[i], a[i + 4]);
  for (int i = 0; i < 8; i++) memcpy(y + i * ldy, &b[i], 16);
}

static void turn_floats(const float *x, int64_t ldx, float *y, int64_t ldy) {
  floats a[4], b[4];
  for (int i = 0; i < 4; i++) memcpy(&a[i], x + i * ldx, 16);
  for (int i = 0; i < 2; i++) {
    b[2 * i] = __builtin_shufflevector(a[i], a[i + 2], 0, 4, 1, 5), b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 6, 3, 7);
  }
  for (int i = 0; i < 2; i++) {
    a[2 * i] = __builtin_shufflevector(b[i], b[i + 2], 0, 4, 1, 5), a[2 * i + 1] = __builtin_shufflevector(b[i], b[i + 2], 2, 6, 3, 7);
  }
  for (int i = 0; i < 4; i++) memcpy(y + i * ldy, &a[i], 16);
}

#define TURN(T, SIDE, square)                                                                         \
  static void turn_##T(const T *x, int64_t ldx, T *y, int64_t ldy, int64_t n, int64_t m) {            \
    const int64_t whole = n / SIDE * SIDE, whole_m = m / SIDE * SIDE;                                 \
    for (int64_t i = 0; i < whole; i += SIDE) {                                                       \
      for (int64_t j = 0; j < whole_m; j += SIDE) square(x + i * ldx + j, ldx, y + j * ldy + i, ldy); \
    }                                                                                                 \
    for (int64_t i = 0; i < n; i++) {                                                                 \
      for (int64_t j = i < whole ? whole_m : 0; j < m; j++) y[j * ldy + i] = x[i * ldx + j];          \
    }                                                                                                 \
  }
TURN(uint16_t, 8, turn_words)
TURN(float, 4, turn_floats)

void pk_turn(int32_t type, const void *x, int64_t ldx, void *y, int64_t ldy, int64_t n, int64_t m) {
  if (type == PK_F32) {
    turn_float(x, ldx, y, ldy, n, m);
  } else {
    turn_uint16_t(x, ldx, y, ldy, n, m);
  }
}

void pk_turn_rows(int32_t act, const void *x, void *y, int64_t rows, int64_t n, int64_t m, int32_t part, int32_t parts) {
  const int64_t band = 32, bands = (n + band - 1) / band; /* so that one matrix has work for several threads, in whole lines of y where n is a multiple of 16 */
  const pk_range share = pk_share(rows * bands, 1, part, parts);
  for (int64_t unit = share.begin; unit < share.end; unit++) {
    const int64_t at = unit / bands * n * m, begin = unit % bands * band, bytes = act == PK_F32 ? 4 : 2;
    pk_turn(act, (const uint8_t *)x + (at + begin * m) * bytes, m, (uint8_t *)y + (at + begin) * bytes, n, pk_min(band, n - begin), m);
  }
}
