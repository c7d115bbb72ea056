/* What products on AVX2 share: values to bf16, 32 of x to eight bits. Included inside of the target's attribute, after INLINE. */
#ifndef PK_MATMUL_AVX2_H
#define PK_MATMUL_AVX2_H

INLINE __m256 widen_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }

/* Round to nearest even; a NaN stays a quiet NaN. */
INLINE __m128i narrow_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16);
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_and_si256(top, _mm256_set1_epi32(1))), _mm256_set1_epi32(0x7fff)), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i halves = _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(64)), nan);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08));
}

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
