/* Products of block formats with int8 activations: x ≈ scale·q per 32 values, so that a block of 32 weights d·(p − offset) or d·p + m adds
 *
 *     d·scale · (Σ p·q − offset·Σ q)     or     d·scale · Σ p·q  +  m · scale·Σ q
 *
 * In the K formats d and m are factors of a super-block of 256 times the block's own; q6_K has two d, each for 16 values.
 *
 * The lanes are 16 rows of W: the quanta of x are broadcast four at a time, and no sum goes across lanes. What is not whole numbers are two
 * multiply-adds a block, in one order: the same bits with every instruction set.
 *
 * Included once by a file for each, which has defined before
 *
 *     w_block             a block of 16 rows of W, taken apart
 *     most_in_registers   rows of x that are multiplied as W is read
 *     signed_offset       what it adds to signed quanta
 *
 * and goes on to define the functions declared here. */

enum { lanes = PK_GEMV_WIDE };

/* 32 values of x. */
typedef struct x_block {
  int8_t q[32];
  int32_t starts[2]; /* −offset · Σq of all 32, or of each half */
  float scale, sum;  /* sum: scale · Σq */
} x_block;

/* A block format: bits of its quanta (those of 8 are signed) and what they are too large by; bytes of a block, or of a super-block; where its
 * minimum (0: it has none), further bits of its quanta and the quanta stand. A constant of each function. */
typedef struct layout {
  int bits, offset, block, super, minimum, further, quanta;
} layout;

INLINE int has_halves(layout f) { return f.bits == 6; }

/* Block `block` of 16 rows of W; of the K formats (formats_decode.h), half a super-block: four from `block` on. */
INLINE w_block take_apart(layout f, const uint8_t *const *w, int64_t block);
INLINE void take_super_apart(layout f, const uint8_t *const *w, int64_t block, w_block to[4]);
/* sums[i] += the block times row i of x, of `rows` rows (1, 2, 4, 8), `stride` bytes apart. */
INLINE void add_block(layout f, const w_block *w, const x_block *x, size_t stride, int rows, float sums[][lanes]);
/* Whether few rows of x are multiplied by code of another file. */
INLINE int few_elsewhere(layout f);
/* The sums of 16 rows of W in super-blocks with one row of x; 0: there is no code of its own for that. */
INLINE int dot_super(layout f, const uint8_t *const *w, const uint8_t *x, int64_t k, float *sums);
/* NaN or infinity among the values: the scale is NaN, and so is every sum it enters. */
INLINE void round_block(layout f, const float *x, x_block *to);

/* The scale of 32 values, and what they are multiplied with: 0 where 1 / scale would be infinite. */
INLINE float scale_of(float largest, int is_bad, float *inverse) {
  const float scale = largest / 127;
  *inverse = !is_bad && scale >= 0x1p-126f ? 1 / scale : 0;
  return is_bad ? __builtin_nanf("") : scale;
}

/* What stands beside quanta with these sums. */
INLINE void finish_block(layout f, float scale, int32_t first_half, int32_t second_half, x_block *to) {
  const int32_t sum = first_half + second_half;
  to->starts[0] = -f.offset * (has_halves(f) ? first_half : sum), to->starts[1] = -f.offset * second_half;
  to->scale = scale, to->sum = scale * (float)sum;
}

INLINE void prepare(layout f, const float *x, int64_t k, void *prepared) {
  for (int64_t i = 0; i < k / 32; i++) round_block(f, x + 32 * i, (x_block *)prepared + i);
}

static size_t x_bytes(int64_t k) { return ((size_t)(k + 31) / 32 * sizeof(x_block) + 63) / 64 * 64; }

/* ---- few rows of x: W is multiplied as it is read ---- */

/* Fetches to L2 what is needed after these 16 rows: as much, from w[lanes] on. A few lines at a time: those of half a super-block at once would
 * keep its own loads waiting. */
INLINE void fetch_ahead(const layout f, const uint8_t *const *w, int64_t block) {
  const int64_t bytes = f.super ? lanes / 8 * f.super : lanes * f.block;
  const uint8_t *const next = w[lanes] + block * bytes;
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(next + line, 0, 2);
}

INLINE void dot(const layout f, const uint8_t *const *w, const uint8_t *x, size_t stride, const int rows, int64_t k, float *sums) {
  float sum[8][lanes] __attribute__((aligned(64))) = {0};
  for (int64_t b = 0; b < k / 32; b++) {
    fetch_ahead(f, w, b);
    const w_block block = take_apart(f, w, b);
    add_block(f, &block, (const x_block *)x + b, stride, rows, sum);
  }
  memcpy(sums, sum, (size_t)rows * sizeof *sum);
}

/* ---- more rows: blocks of W are taken apart once for all of them ---- */

static int64_t panel_bytes(int64_t blocks) { return blocks * (int64_t)sizeof(w_block); }

INLINE void unpack(const layout f, const uint8_t *const *w, int64_t first, int64_t count, w_block *panel) {
  for (int64_t b = 0; b < count; b += f.super ? 4 : 1) {
    if (f.super) {
      take_super_apart(f, w, first + b, panel + b);
    } else {
      fetch_ahead(f, w, first + b);
      panel[b] = take_apart(f, w, first + b);
    }
  }
}

INLINE void add_blocks(const layout f, const w_block *w, const x_block *x, size_t stride, const int rows, int64_t count, float *sums) {
  float sum[8][lanes] __attribute__((aligned(64)));
  memcpy(sum, sums, (size_t)rows * sizeof *sum);
  for (int64_t b = 0; b < count; b++) add_block(f, w + b, x + b, stride, rows, sum);
  memcpy(sums, sum, (size_t)rows * sizeof *sum);
}

/* Code that multiplies while it reads is large, and a fifth faster for few rows: not every format has it. */
INLINE int is_rare(layout f) { return f.super || f.bits == 5; }

/* sums[rows][16] += the rows of x times the panel's blocks; 8 rows where fewer do not come here. */
INLINE void add_panel(const layout f, const void *panel, const uint8_t *x, size_t stride, int rows, int64_t count, float *sums) {
  if (few_elsewhere(f)) return add_blocks(f, panel, (const x_block *)x, stride, 8, count, sums);
  if (f.super && rows == 1) return add_blocks(f, panel, (const x_block *)x, stride, 1, count, sums);
  if (is_rare(f) && rows == 2) return add_blocks(f, panel, (const x_block *)x, stride, 2, count, sums);
  if (is_rare(f) && rows == 4) return add_blocks(f, panel, (const x_block *)x, stride, 4, count, sums);
  add_blocks(f, panel, (const x_block *)x, stride, 8, count, sums);
}

/* Few rows by way of a panel. */
static inline void dot_unpacked(pk_unpack_fn *unpack, pk_add_panel_fn *add, const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t rows, int64_t k, float *sums) {
  enum { some = 16 };
  w_block panel[some];
  memset(sums, 0, (size_t)(rows * lanes) * sizeof *sums);
  for (int64_t first = 0; first < k / 32; first += some) {
    const int64_t count = pk_min(some, k / 32 - first);
    unpack(w, first, count, panel);
    add(panel, x + (size_t)first * sizeof(x_block), stride, rows, count, sums);
  }
}

/* The number of rows of x is written out for each: a number that the compiler does not know it branches at, in the innermost loop. */
#define KERNEL(name, ...)                                                                                                      \
  static void prepare_##name(const float *x, int64_t k, void *prepared) { prepare((layout){__VA_ARGS__}, x, k, prepared); }    \
  static void unpack_##name(const uint8_t *const *w, int64_t first, int64_t count, void *panel) {                              \
    const layout f = {__VA_ARGS__};                                                                                            \
    unpack(f, w, first, count, panel);                                                                                         \
  }                                                                                                                            \
  static void add_panel_##name(const void *panel, const uint8_t *x, size_t stride, int32_t rows, int64_t count, float *sums) { \
    const layout f = {__VA_ARGS__};                                                                                            \
    add_panel(f, panel, x, stride, rows, count, sums);                                                                         \
  }                                                                                                                            \
  static void multiply_##name(const uint8_t *const *w, const uint8_t *x, size_t stride, int32_t count, int64_t k, float *sums) {\
    const layout f = {__VA_ARGS__};                                                                                            \
    if (few_elsewhere(f)) return;                                                                                              \
    if (count == 1 && f.super && dot_super(f, w, x, k, sums)) return;                                                          \
    if (count == 1 && !f.super) return dot(f, w, x, stride, 1, k, sums);                                                       \
    if (is_rare(f)) return dot_unpacked(unpack_##name, add_panel_##name, w, x, stride, count, k, sums);                        \
    if (count == 2) return dot(f, w, x, stride, 2, k, sums);                                                                   \
    if (most_in_registers < 4) return dot(f, w, x, stride, count < 8 ? 4 : 8, k, sums);                                        \
    if (count == 4) return dot(f, w, x, stride, 4, k, sums);                                                                   \
    if (count == 8) return dot(f, w, x, stride, 8, k, sums);                                                                   \
  }                                                                                                                            \
  static const pk_gemv_kernel kernel_##name = {x_bytes, prepare_##name, multiply_##name, lanes, 8, panel_bytes, unpack_##name, add_panel_##name};
KERNEL(q4_0, .bits = 4, .offset = 8, .block = 18, .quanta = 2)
KERNEL(q4_1, .bits = 4, .block = 20, .minimum = 2, .quanta = 4)
KERNEL(q5_0, .bits = 5, .offset = 16, .block = 22, .further = 2, .quanta = 6)
KERNEL(q5_1, .bits = 5, .block = 24, .minimum = 2, .further = 4, .quanta = 8)
KERNEL(q8_0, .bits = 8, .offset = signed_offset, .block = 34, .quanta = 2)
KERNEL(q4_K, .bits = 4, .super = 144, .minimum = 2, .quanta = 16)
KERNEL(q5_K, .bits = 5, .super = 176, .minimum = 2, .further = 16, .quanta = 48)
KERNEL(q6_K, .bits = 6, .offset = 32, .super = 210, .further = 128)

static const pk_gemv_kernel *kernel_of(int32_t w_type) {
  switch (w_type) {
    case PK_Q4_0: return &kernel_q4_0;
    case PK_Q4_1: return &kernel_q4_1;
    case PK_Q5_0: return &kernel_q5_0;
    case PK_Q5_1: return &kernel_q5_1;
    case PK_Q8_0: return &kernel_q8_0;
    case PK_Q4_K: return &kernel_q4_K;
    case PK_Q5_K: return &kernel_q5_K;
    case PK_Q6_K: return &kernel_q6_K;
    default: return NULL;
  }
}
