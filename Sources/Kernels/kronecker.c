/* Rows times a Kronecker product whose second factor is of low rank (LoKr): with a row of x as X [m, n], one of y as Y [l, k],
 *
 *     U = X·Bᵀ [m, r]      Z = W·U [l, r]      Y += scale · Z·Aᵀ                         W [l, m]   A [k, r]   B [r, n]
 *
 * and in the backward pass, with scale in dY,
 *
 *     dZ = dY·A   dU = Wᵀ·dZ   dX = dU·B         dA = Σ dYᵀ·Z   dW = Σ dZ·Uᵀ   dB = Σ dUᵀ·X   (over the rows)
 *
 * A row with all of this is some 10 kB: it stays in L1 from beginning to end, where products over all rows would carry each of these from memory and
 * back. U and Z are computed again in the backward pass. Products are small tiles without packing: 4 × 3 vectors of sums, 3 of the right side and a
 * value of the left one are the 16 registers of AVX2. */
#ifndef LEVEL
#include "kernels.h"
#include "share.h"
#define AVX2_IS_ENOUGH
#define BODY "kronecker.c"

#include "levels.h"

static int64_t chunks_of(const pk_kronecker *op) { return (op->rows + CHUNK - 1) / CHUNK; }

void pk_kronecker_scratch(const pk_kronecker *op, int32_t backward, size_t *each, size_t *shared) {
  pk_kronecker_pieces pieces;
  *each = pk_kronecker_pieces_of(op, 0, &pieces);
  *shared = backward ? (size_t)(chunks_of(op) * sums_size(op)) * sizeof(float) : 0;
}

void pk_kronecker_forward(const pk_kronecker *op, int32_t part, int32_t parts, void *each) {
  AT_LEVEL(op->level, kronecker_forward)(op, pk_share(op->rows, 1, part, parts), each);
}

void pk_kronecker_backward(const pk_kronecker *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  if (phase == 0) {
    const pk_range own = pk_share(chunks_of(op), 1, part, parts);
    AT_LEVEL(op->level, kronecker_backward)(op, own, shared, each);
    return;
  }
  if (part > 0) return;
  const int64_t rp = pk_padded(op->r), mp = pk_padded(op->m);
  for (int64_t chunk = 0; chunk < chunks_of(op); chunk++) {
    const float *d_w = (const float *)shared + chunk * sums_size(op), *d_a = d_w + op->l * mp, *d_b = d_a + op->k * rp;
    for (int64_t i = 0; op->d_w && i < op->l * op->m; i++) op->d_w[i] += d_w[i / op->m * mp + i % op->m];
    for (int64_t i = 0; op->d_a && i < op->k * op->r; i++) op->d_a[i] += d_a[i / op->r * rp + i % op->r];
    for (int64_t i = 0; op->d_b && i < op->r * op->n; i++) op->d_b[i] += d_b[i % op->n * rp + i / op->n];
  }
}

#else

#if LEVEL == 0
/* Rows whose gradients of W, A and B are summed together: sums do not depend on who computes them. */
#define CHUNK 64

static inline int64_t pk_padded(int64_t columns) { return pk_round_up(columns, 16); } /* whole vectors at every level */

/* The sums of a chunk: dW [l, m], dA [k, r], dBᵀ [n, r]. */
static int64_t sums_size(const pk_kronecker *op) { return op->l * pk_padded(op->m) + (op->k + op->n) * pk_padded(op->r); }

/* What a part has: the small matrices as right sides of products (padded with zeros), and a row. */
typedef struct pk_kronecker_pieces {
  float *a, *a_turned;             /* [k, r] [r, k] */
  float *b, *b_turned;             /* [r, n] [n, r] */
  float *x, *y;                    /* [m, n] [l, k], without padding */
  float *u, *u_turned, *z;         /* [m, r] [r, m] [l, r] */
  float *d_u, *d_z;                /* [m, r] [l, r] */
  float *wide;                     /* [l, k] or [m, n] */
} pk_kronecker_pieces;

static size_t pk_kronecker_pieces_of(const pk_kronecker *op, uintptr_t base, pk_kronecker_pieces *pieces) {
  const int64_t l = op->l, k = op->k, m = op->m, n = op->n, r = op->r, rp = pk_padded(r), spill = 16;
  size_t used = 0;
  pieces->a = pk_take(base, &used, 4 * k * rp), pieces->a_turned = pk_take(base, &used, 4 * r * pk_padded(k));
  pieces->b = pk_take(base, &used, 4 * r * pk_padded(n)), pieces->b_turned = pk_take(base, &used, 4 * n * rp);
  pieces->x = pk_take(base, &used, 4 * (m * n + spill)), pieces->y = pk_take(base, &used, 4 * (l * k + spill));
  pieces->u = pk_take(base, &used, 4 * m * rp), pieces->u_turned = pk_take(base, &used, 4 * r * pk_padded(m)), pieces->z = pk_take(base, &used, 4 * l * rp);
  pieces->d_u = pk_take(base, &used, 4 * m * rp), pieces->d_z = pk_take(base, &used, 4 * l * rp);
  pieces->wide = pk_take(base, &used, 4 * pk_max(l * pk_padded(k), m * pk_padded(n)));
  return used;
}

/* to [rows, columns], padded, = from[row·step + column·stride]. */
static inline void pk_pad(const float *from, int64_t step, int64_t stride, int64_t rows, int64_t columns, float *to) {
  const int64_t ld = pk_padded(columns);
  memset(to, 0, (size_t)(rows * ld) * sizeof *to);
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < columns; j++) to[i * ld + j] = from[i * step + j * stride];
  }
}

static inline pk_kronecker_pieces pk_kronecker_begin(const pk_kronecker *op, void *each) {
  pk_kronecker_pieces p;
  pk_kronecker_pieces_of(op, (uintptr_t)each, &p);
  pk_pad(op->a, op->r, 1, op->k, op->r, p.a), pk_pad(op->a, 1, op->r, op->r, op->k, p.a_turned);
  pk_pad(op->b, op->n, 1, op->r, op->n, p.b), pk_pad(op->b, 1, op->n, op->n, op->r, p.b_turned);
  memset(p.u_turned, 0, (size_t)(op->r * pk_padded(op->m)) * sizeof(float));
  return p;
}

/* A matrix [rows, columns] and its places: of row i and column j at i·row + j·column. */
typedef struct pk_left {
  const float *at;
  int64_t row, column;
} pk_left;
#endif

/* `rows` × `vectors` sums in registers. */
INLINE void NAME(small_tile)(int rows, int vectors, float *c, int64_t ldc, pk_left a, const float *b, int64_t ldb, int64_t depth, int keep) {
  vf sum[8][3];
  for (int i = 0; i < rows; i++) {
    for (int v = 0; v < vectors; v++) sum[i][v] = keep ? vget(c + i * ldc + v * WIDTH) : (vf){0};
  }
  for (int64_t s = 0; s < depth; s++) {
    vf right[3];
    for (int v = 0; v < vectors; v++) right[v] = vget(b + s * ldb + v * WIDTH);
    for (int i = 0; i < rows; i++) {
      const float left = a.at[i * a.row + s * a.column];
      for (int v = 0; v < vectors; v++) sum[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < rows; i++) {
    for (int v = 0; v < vectors; v++) vput(c + i * ldc + v * WIDTH, sum[i][v]);
  }
}

/* C [rows, columns] (+)= A [rows, depth] · B [depth, columns]; rows of B and C padded. 4 × 3 vectors of sums, or 8 × 1. */
static __attribute__((noinline)) void NAME(small_product)(float *c, pk_left a, const float *b, int64_t rows, int64_t columns, int64_t depth, int keep) {
  const int64_t ld = pk_padded(columns), all = (columns + WIDTH - 1) / WIDTH;
  for (int64_t v = 0, vectors; v < all; v += vectors) {
    vectors = all - v >= 3 ? 3 : 1;
    for (int64_t i = 0, some; i < rows; i += some) {
      const int64_t most = vectors == 3 ? 4 : 8;
      const pk_left left = {a.at + i * a.row, a.row, a.column};
      float *const to = c + i * ld + v * WIDTH;
      const float *const right = b + v * WIDTH;
      some = rows - i >= most ? most : 1;
      if (vectors == 3) {
        some == 4 ? NAME(small_tile)(4, 3, to, ld, left, right, ld, depth, keep) : NAME(small_tile)(1, 3, to, ld, left, right, ld, depth, keep);
      } else {
        some == 8 ? NAME(small_tile)(8, 1, to, ld, left, right, ld, depth, keep) : NAME(small_tile)(1, 1, to, ld, left, right, ld, depth, keep);
      }
    }
  }
}

/* A padded matrix without its padding; what a row writes too far, the next writes again. */
INLINE void NAME(close_up)(const float *from, int64_t rows, int64_t columns, float *to) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < columns; j += WIDTH) vput(to + i * columns + j, vget(from + i * pk_padded(columns) + j));
  }
}

/* X, U and Z of a row. */
INLINE void NAME(enter_row)(const pk_kronecker *op, int64_t row, const pk_kronecker_pieces *p) {
  const int64_t in = op->m * op->n;
  FOR_VECTORS(i, lanes, 0, in) vput(p->x + i, vload(op->x_type, op->x, row * in + i, lanes));
  NAME(small_product)(p->u, (pk_left){p->x, op->n, 1}, p->b_turned, op->m, op->r, op->n, 0);
  NAME(small_product)(p->z, (pk_left){op->w, op->m, 1}, p->u, op->l, op->r, op->m, 0);
}

static void NAME(kronecker_forward)(const pk_kronecker *op, pk_range rows, void *each) {
  const pk_kronecker_pieces p = pk_kronecker_begin(op, each);
  const int64_t out = op->l * op->k;
  for (int64_t row = rows.begin; row < rows.end; row++) {
    NAME(enter_row)(op, row, &p);
    NAME(small_product)(p.wide, (pk_left){p.z, pk_padded(op->r), 1}, p.a_turned, op->l, op->k, op->r, 0);
    NAME(close_up)(p.wide, op->l, op->k, p.y);
    FOR_VECTORS(i, lanes, 0, out) {
      vstore(op->y_type, op->y, row * out + i, lanes, vload(op->y_type, op->y, row * out + i, lanes) + op->scale * vget(p.y + i));
    }
  }
}

static void NAME(kronecker_backward)(const pk_kronecker *op, pk_range chunks, float *shared, void *each) {
  const pk_kronecker_pieces p = pk_kronecker_begin(op, each);
  const int64_t l = op->l, k = op->k, m = op->m, n = op->n, r = op->r, rp = pk_padded(r), mp = pk_padded(m), in = m * n, out = l * k;
  for (int64_t chunk = chunks.begin; chunk < chunks.end; chunk++) {
    float *const d_w = shared + chunk * sums_size(op), *const d_a = d_w + l * mp, *const d_b = d_a + k * rp;
    memset(d_w, 0, (size_t)sums_size(op) * sizeof *d_w);
    for (int64_t row = chunk * CHUNK; row < pk_min(op->rows, (chunk + 1) * CHUNK); row++) {
      NAME(enter_row)(op, row, &p);
      FOR_VECTORS(i, lanes, 0, out) vput(p.y + i, op->scale * vload(op->y_type, op->d_y, row * out + i, lanes));
      NAME(small_product)(p.d_z, (pk_left){p.y, k, 1}, p.a, l, r, k, 0);
      NAME(small_product)(p.d_u, (pk_left){op->w, 1, m}, p.d_z, m, r, l, 0);
      if (op->d_a) NAME(small_product)(d_a, (pk_left){p.y, 1, k}, p.z, k, r, l, 1);
      if (op->d_b) NAME(small_product)(d_b, (pk_left){p.x, 1, n}, p.d_u, n, r, m, 1);
      if (op->d_w) {
        for (int64_t i = 0; i < m; i++) {
          for (int64_t j = 0; j < r; j++) p.u_turned[j * mp + i] = p.u[i * rp + j];
        }
        NAME(small_product)(d_w, (pk_left){p.d_z, rp, 1}, p.u_turned, l, m, r, 1);
      }
      if (!op->d_x) continue;
      NAME(small_product)(p.wide, (pk_left){p.d_u, rp, 1}, p.b, m, n, r, 0);
      NAME(close_up)(p.wide, m, n, p.x);
      FOR_VECTORS(i, lanes, 0, in) {
        vf sum = vget(p.x + i);
        if (op->accumulate) sum += vload(op->x_type, op->d_x, row * in + i, lanes);
        vstore(op->x_type, op->d_x, row * in + i, lanes, sum);
      }
    }
  }
}

#endif
