/* bf16 tiles with AMX: tdpbf16ps multiplies 16 × 32 by 32 × 16 values in 16 cycles at best, as much as 256 vdpbf16ps or 512 multiply-adds of
 * f32 vectors.
 *
 * The eight tile registers hold 32 × 48 sums (0 … 5), a tile of A (6: 16 rows of 32 values as they lie) and one of the panel (7: 16 steps of
 * 16 pairs; a panel in the order of matmul_bf16.c is what the instruction wants). A step is 6 products against 8 tiles loaded, each of 16 lines.
 * What is left of k beyond a multiple of 32 is multiplied from copies filled up with zeros; where all of k is less (low rank), registers are as short.
 *
 * Measured (Emerald Rapids, one thread, 512 rows): 1050–1200 GFLOP/s forward, 960–1070 backward, 45–52 and 42–46 % of what registers alone reach with
 * ordinary values. Of 287 µs (576 × 576) the products would take 145, outputs take 45, packing 30. The rest is between loads and products: neither
 * fetching ahead nor blocks that stay in L1 shortened it.
 *
 * Registers are configured once for all tiles of a part (150 ns), and again for a last tile of fewer rows; they are released at the end, so that
 * the host's threads do not carry 8 kB of state about. Denormals count as 0, as in vdpbf16ps. */
#include "attention.h"
#include "matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#define HAS_BF16
#include "matmul_avx512.h"

enum { half = 16 /* rows of a register */, columns = 48, line = 64 /* bytes of such a row: 32 values, 16 pairs, 16 sums */ };

/* Operand of ldtilecfg. */
typedef struct configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t line_bytes[16];
  uint8_t rows[16];
} configuration;

/* Registers for so many rows of A and of sums at a time, and so many steps (pairs of k), 1 … 16 of each. */
static void configure(int64_t rows, int64_t steps) {
  const uint8_t r = (uint8_t)rows;
  const configuration c = {
      .palette = 1, .line_bytes = {line, line, line, line, line, line, (uint16_t)(4 * steps), line}, .rows = {r, r, r, r, r, r, r, (uint8_t)steps}};
  _tile_loadconfig(&c);
}

/* Steps of a register: fewer than 16 only where a product has no more. (None at all is no size of a register.) */
static int64_t most_steps(int64_t steps) { return steps > 0 && steps < 16 ? steps : 16; }
static int64_t steps_at_once(const pk_tile *tile) { return tile->continues ? 16 : most_steps(tile->steps); }

void pk_amx_begin(int64_t steps) { configure(half, most_steps(steps)); }
void pk_amx_end(void) { _tile_release(); }

/* Sums += a register's steps of k: `a` at rows lda bytes apart, and the panel's. */
INLINE void step(int halves, int vectors, const uint8_t *a, int64_t lda, const uint8_t *panel) {
  const int64_t next = (int64_t)line * vectors;
  _tile_loadd(6, a, lda);
  _tile_loadd(7, panel, next);
  _tile_dpbf16ps(0, 6, 7);
  if (vectors > 1) {
    _tile_loadd(7, panel + line, next);
    _tile_dpbf16ps(1, 6, 7);
  }
  if (vectors > 2) {
    _tile_loadd(7, panel + 2 * line, next);
    _tile_dpbf16ps(2, 6, 7);
  }
  if (halves == 1) return;
  _tile_loadd(6, a + half * lda, lda);
  if (vectors > 2) _tile_dpbf16ps(5, 6, 7);
  if (vectors > 1) {
    if (vectors > 2) _tile_loadd(7, panel + line, next);
    _tile_dpbf16ps(4, 6, 7);
    _tile_loadd(7, panel, next);
  }
  _tile_dpbf16ps(3, 6, 7);
}

/* The sums of a register: 0, or where the block of k before left them. */
#define BEGIN(number, row, column)                                               \
  do {                                                                           \
    if (tile->continues) {                                                       \
      _tile_loadd(number, tile->sums + (row) * columns + (column), 4 * columns); \
    } else {                                                                     \
      _tile_zero(number);                                                        \
    }                                                                            \
  } while (0)

/* Rows `first` on of a tile, `rows` of them: 32, or what registers are configured for. */
INLINE void multiply_rows(const pk_tile *tile, int64_t first, int64_t rows, int halves, int vectors) {
  BEGIN(0, first, 0);
  if (vectors > 1) BEGIN(1, first, 16);
  if (vectors > 2) BEGIN(2, first, 32);
  if (halves > 1) BEGIN(3, half, 0);
  if (halves > 1 && vectors > 1) BEGIN(4, half, 16);
  if (halves > 1 && vectors > 2) BEGIN(5, half, 32);

  const int64_t lda = 2 * tile->lda, whole = tile->steps / steps_at_once(tile);
  const uint8_t *a = (const uint8_t *)tile->a + first * lda, *panel = tile->panel;
  for (int64_t s = 0; s < whole; s++, a += line, panel += 16 * line * vectors) step(halves, vectors, a, lda, panel);
  const int64_t left = tile->steps % steps_at_once(tile);
  if (left > 0) {
    uint8_t last_a[2 * half][line] __attribute__((aligned(64))) = {0}, last_panel[16 * 3 * line] __attribute__((aligned(64))) = {0};
    for (int64_t r = 0; r < rows; r++) memcpy(last_a[r], a + r * lda, 4 * (size_t)left);
    memcpy(last_panel, panel, (size_t)(left * line * vectors));
    step(halves, vectors, last_a[0], line, last_panel);
  }

  float own[2 * half][columns] __attribute__((aligned(64)));
  float *sums = tile->ends ? own[0] : tile->sums + first * columns;
  _tile_stored(0, sums, 4 * columns);
  if (vectors > 1) _tile_stored(1, sums + 16, 4 * columns);
  if (vectors > 2) _tile_stored(2, sums + 32, 4 * columns);
  if (halves > 1) _tile_stored(3, sums + half * columns, 4 * columns);
  if (halves > 1 && vectors > 1) _tile_stored(4, sums + half * columns + 16, 4 * columns);
  if (halves > 1 && vectors > 2) _tile_stored(5, sums + half * columns + 32, 4 * columns);
  if (tile->ends) finish(tile, own[0], (int)first, (int)rows, vectors);
}

INLINE void multiply_tile(const pk_tile *tile, int vectors) {
  if (tile->rows == 2 * half) {
    multiply_rows(tile, 0, 2 * half, 2, vectors);
    return;
  }
  for (int64_t first = 0; first < tile->rows; first += half) {
    const int64_t rows = pk_min(half, tile->rows - first);
    if (rows < half) configure(rows, steps_at_once(tile));
    multiply_rows(tile, first, rows, 1, vectors);
    if (rows < half) configure(half, steps_at_once(tile));
  }
}

static void multiply(const pk_tile *tile) {
  switch (tile->vectors) {
    case 1: multiply_tile(tile, 1); break;
    case 2: multiply_tile(tile, 2); break;
    case 3: multiply_tile(tile, 3); break;
  }
}

/* ---- attention ---- */

/* Sixteen rows of 16 sums times factor[column], before they are loaded. */
INLINE void fade(float *c, int64_t ldc, const float *factor) {
  const __m512 f = _mm512_loadu_ps(factor);
#pragma unroll
  for (int r = 0; r < half; r++) _mm512_storeu_ps(c + r * ldc, _mm512_mul_ps(_mm512_loadu_ps(c + r * ldc), f));
}

/* 16·rows × 16·vectors sums, one or two of each; registers 0 … 3, operands 4, 5 and 6, 7. */
INLINE void multiply_square(int rows, int vectors, const uint8_t *a, int64_t a_bytes, const uint32_t *b, int64_t ldb, float *c, int64_t ldc, int64_t depth,
                            int keep, const float *factor) {
  const int64_t b_bytes = 4 * ldb, c_bytes = 4 * ldc;
  float *low = c + half * ldc;
  if (keep && factor) {
    fade(c, ldc, factor);
    if (vectors > 1) fade(c + half, ldc, factor + half);
    if (rows > 1) fade(low, ldc, factor);
    if (rows > 1 && vectors > 1) fade(low + half, ldc, factor + half);
  }
  if (keep) {
    _tile_loadd(0, c, c_bytes);
    if (vectors > 1) _tile_loadd(1, c + half, c_bytes);
    if (rows > 1) _tile_loadd(2, low, c_bytes);
    if (rows > 1 && vectors > 1) _tile_loadd(3, low + half, c_bytes);
  } else {
    _tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += half, a += line, b += half * ldb) {
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, b, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (vectors > 1) {
      _tile_loadd(7, b + half, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (rows > 1) {
      _tile_loadd(5, a + half * a_bytes, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (vectors > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  if (vectors > 1) _tile_stored(1, c + half, c_bytes);
  if (rows > 1) _tile_stored(2, low, c_bytes);
  if (rows > 1 && vectors > 1) _tile_stored(3, low + half, c_bytes);
}

void pk_amx_multiply(const void *a, int64_t a_bytes, const uint32_t *b, int64_t ldb, float *c, int64_t ldc, int64_t m, int64_t n, int64_t depth, int keep,
                     const float *factor) {
  for (int64_t i = 0; i < m; i += 2 * half) {
    for (int64_t j = 0; j < n; j += 2 * half) {
      const uint8_t *rows = (const uint8_t *)a + i * a_bytes;
      float *to = c + i * ldc + j;
      const float *f = factor ? factor + j : NULL;
      const int rest_m = m - i <= half, rest_n = n - j <= half;
      if (!rest_m && !rest_n) multiply_square(2, 2, rows, a_bytes, b + j, ldb, to, ldc, depth, keep, f);
      else if (!rest_m) multiply_square(2, 1, rows, a_bytes, b + j, ldb, to, ldc, depth, keep, f);
      else if (!rest_n) multiply_square(1, 2, rows, a_bytes, b + j, ldb, to, ldc, depth, keep, f);
      else multiply_square(1, 1, rows, a_bytes, b + j, ldb, to, ldc, depth, keep, f);
    }
  }
}

const pk_tile_kernel *pk_kernel_amx(void) {
  static const pk_tile_kernel kernel = {PK_BF16, 2 * half, 16, 3, multiply, pk_pack_pairs, pk_pack_two_rows, pk_amx_begin, pk_amx_end, 450 << 10 /* L2 is 2 MB */};
  return &kernel;
}

#pragma clang attribute pop
#else
const pk_tile_kernel *pk_kernel_amx(void) { return NULL; }
void pk_amx_begin(int64_t steps) { (void)steps; }
void pk_amx_end(void) {}
#endif
