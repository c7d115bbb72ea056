/* How 32 values of x become eight bits on AVX2. Included inside of the target's attribute, after INLINE. */
#ifndef PK_MATMUL_AVX2_H
#define PK_MATMUL_AVX2_H

/* The largest magnitude; lanes of `bad` are set where a value is infinite or NaN. */
INLINE float largest_of(const float *x, __m256 *bad) {
  __m256 largest = _mm256_setzero_ps();
#pragma unroll
  for (int i = 0; i < 32; i += 8) {
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + i));
    largest = _mm256_max_ps(size, largest);
    *bad = _mm256_or_ps(*bad, _mm256_cmp_ps(size, _mm256_set1_ps(__builtin_inff()), _CMP_NLT_UQ));
  }
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

INLINE int32_t sum_of(__m256i sixteen) {
  const __m256i fours = _mm256_madd_epi16(sixteen, _mm256_set1_epi16(1));
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/* q = round(x · inverse); sums of the first and of the second 16. */
INLINE void round_32(const float *x, float inverse, int8_t *to, int32_t sums[2]) {
  __m256i q[4];
#pragma unroll
  for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
  const __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
  _mm256_storeu_si256((__m256i *)to, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  sums[0] = sum_of(low), sums[1] = sum_of(high);
}

#endif
