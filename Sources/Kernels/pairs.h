/* Words of 32 bits as operands: an f32, or a pair of bf16 that are neighbours along a sum, which the processor multiplies
 * two at a time. Included after vector.h, once per level: no guard. `pairs` is a constant at every call. */

/* acc + a·b per lane; in pairs acc + a₀·b₀ + a₁·b₁. */
#define multiply_words NAME(multiply_words)
INLINE vf multiply_words(int pairs, vf acc, vu a, vu b) {
#if LEVEL == 3
  if (pairs) {
    return __builtin_bit_cast(vf, _mm512_dpbf16_ps(__builtin_bit_cast(__m512, acc), __builtin_bit_cast(__m512bh, a),
                                                   __builtin_bit_cast(__m512bh, b)));
  }
#else
  (void)pairs;
#endif
  return vfloat(a) * vfloat(b) + acc;
}

/* Sixteen bf16 of one row and sixteen of the next → sixteen pairs. (Only the highest level has pairs.) */
#define alternate NAME(alternate)
INLINE vu alternate(vu rows) {
#if LEVEL == 3
  typedef uint16_t halves __attribute__((ext_vector_type(32)));
  const halves both = __builtin_bit_cast(halves, rows);
  return __builtin_bit_cast(vu, __builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24,
                                                        9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#else
  return rows;
#endif
}

/* Rounds to bf16: a in the low halves, b in the high ones. */
#define pack_pair NAME(pack_pair)
INLINE vu pack_pair(vf a, vf b) {
#if LEVEL == 3
  return alternate(__builtin_bit_cast(vu, _mm512_cvtne2ps_pbh(__builtin_bit_cast(__m512, b), __builtin_bit_cast(__m512, a))));
#else
  return __builtin_convertvector(vround(a), vu) | __builtin_convertvector(vround(b), vu) << 16;
#endif
}

/* WIDTH × WIDTH words in place: at each step s, 2×2 squares of s×s sub-squares swap their off-diagonal. */
#define LOW_(lane, s) (((lane) & (s)) ? (lane) - (s) + WIDTH : (lane))
#define HIGH_(lane, s) (((lane) & (s)) ? (lane) + WIDTH : (lane) + (s))
#define LANES4_(f, s, o) f(o, s), f(o + 1, s), f(o + 2, s), f(o + 3, s)
#undef LANES_
#if WIDTH == 4
#define LANES_(f, s) LANES4_(f, s, 0)
#elif WIDTH == 8
#define LANES_(f, s) LANES4_(f, s, 0), LANES4_(f, s, 4)
#else
#define LANES_(f, s) LANES4_(f, s, 0), LANES4_(f, s, 4), LANES4_(f, s, 8), LANES4_(f, s, 12)
#endif
#define TRANSPOSE_STEP_(x, s)                                                        \
  _Pragma("unroll") for (int i = 0; i < WIDTH; i++) {                                                  \
    if (i & (s)) continue;                                                           \
    const vu low = __builtin_shufflevector(x[i], x[i + (s)], LANES_(LOW_, s));       \
    x[i + (s)] = __builtin_shufflevector(x[i], x[i + (s)], LANES_(HIGH_, s));        \
    x[i] = low;                                                                      \
  }
#define transpose_square NAME(transpose_square)
INLINE void transpose_square(vu x[WIDTH]) {
  TRANSPOSE_STEP_(x, 1)
  TRANSPOSE_STEP_(x, 2)
#if WIDTH >= 8
  TRANSPOSE_STEP_(x, 4)
#endif
#if WIDTH >= 16
  TRANSPOSE_STEP_(x, 8)
#endif
}
