/* The table of weight formats. A new format is a row here, a decoder and an encoder; everything else (products in all
 * directions, gathers, norms, conversions) works from the row. */
#include "formats.h"
#include "half.h"

#define ROW(TYPE, NAME, VALUES, BYTES)                                                    \
  static void decode_##NAME(const void *blocks, float *values, size_t count) {           \
    pk_decode_##NAME(blocks, 0, (int64_t)count, values);                                 \
  }                                                                                      \
  static const pk_format format_##NAME = {TYPE, #NAME, VALUES, BYTES, decode_##NAME, pk_encode_##NAME}
ROW(PK_F32, f32, 1, 4);
ROW(PK_F16, f16, 1, 2);
ROW(PK_BF16, bf16, 1, 2);
ROW(PK_Q4_0, q4_0, 32, 18);
ROW(PK_Q4_1, q4_1, 32, 20);
ROW(PK_Q5_0, q5_0, 32, 22);
ROW(PK_Q5_1, q5_1, 32, 24);
ROW(PK_Q8_0, q8_0, 32, 34);
ROW(PK_Q2_K, q2_K, 256, 84);
ROW(PK_Q3_K, q3_K, 256, 110);
ROW(PK_Q4_K, q4_K, 256, 144);
ROW(PK_Q5_K, q5_K, 256, 176);
ROW(PK_Q6_K, q6_K, 256, 210);
ROW(PK_IQ4_NL, iq4_nl, 32, 18);
ROW(PK_TQ1_0, tq1_0, 256, 54);
ROW(PK_TQ2_0, tq2_0, 256, 66);
ROW(PK_F8_E4M3, f8_e4m3, 1, 1);
ROW(PK_F8_E5M2, f8_e5m2, 1, 1);
/* Rows that are wholes. */
#define pk_encode_nf4 NULL
#define pk_encode_fp4 NULL
#define pk_encode_blockwise8 NULL
ROW(PK_INT8, int8, 32, 0);
ROW(PK_NF4, nf4, 32, 0);
ROW(PK_FP4, fp4, 32, 0);
ROW(PK_BLOCKWISE8, blockwise8, 32, 0);

static const pk_format *const table[] = {
    &format_f32,  &format_f16,  &format_bf16, &format_q4_0,   &format_q4_1,  &format_q5_0,  &format_q5_1,     &format_q8_0,
    &format_q2_K, &format_q3_K, &format_q4_K, &format_q5_K,   &format_q6_K,  &format_iq4_nl, &format_tq1_0,    &format_tq2_0,
    &format_f8_e4m3, &format_f8_e5m2,
    &format_int8, &format_nf4,  &format_fp4,  &format_blockwise8,
};
#define ROWS ((int32_t)(sizeof table / sizeof table[0]))
enum { wholes = 4 }; /* the last */

const pk_format *pk_format_of(int32_t type) {
  for (int32_t i = 0; i < ROWS; i++) {
    if (table[i]->type == type) return table[i];
  }
  return NULL;
}

const pk_format *const *pk_formats(int32_t *count) {
  *count = ROWS - wholes;
  return table;
}

static pk_decode_fn *portable_decoder(int32_t type) {
  switch (type) {
    case PK_F32: return pk_decode_f32;
    case PK_F16: return pk_decode_f16;
    case PK_BF16: return pk_decode_bf16;
    case PK_Q4_0: return pk_decode_q4_0;
    case PK_Q4_1: return pk_decode_q4_1;
    case PK_Q5_0: return pk_decode_q5_0;
    case PK_Q5_1: return pk_decode_q5_1;
    case PK_Q8_0: return pk_decode_q8_0;
    case PK_Q2_K: return pk_decode_q2_K;
    case PK_Q3_K: return pk_decode_q3_K;
    case PK_Q4_K: return pk_decode_q4_K;
    case PK_Q5_K: return pk_decode_q5_K;
    case PK_Q6_K: return pk_decode_q6_K;
    case PK_IQ4_NL: return pk_decode_iq4_nl;
    case PK_TQ1_0: return pk_decode_tq1_0;
    case PK_TQ2_0: return pk_decode_tq2_0;
    case PK_F8_E4M3: return pk_decode_f8_e4m3;
    case PK_F8_E5M2: return pk_decode_f8_e5m2;
    case PK_INT8: return pk_decode_int8;
    case PK_NF4: return pk_decode_nf4;
    case PK_FP4: return pk_decode_fp4;
    case PK_BLOCKWISE8: return pk_decode_blockwise8;
    default: return NULL;
  }
}

pk_decode_fn *pk_decoder(int32_t level, int32_t type) {
  pk_decode_fn *decoder = NULL;
  if (level >= PK_LEVEL_AVX512) decoder = pk_decoder_avx512(type);
  if (!decoder && level >= PK_LEVEL_AVX2) decoder = pk_decoder_avx2(type);
  return decoder ? decoder : portable_decoder(type);
}

pk_encode_fn *pk_encoder(int32_t level, int32_t type) {
  pk_encode_fn *encoder = NULL;
  if (level >= PK_LEVEL_AVX512) encoder = pk_encoder_avx512(type);
  if (!encoder && level >= PK_LEVEL_AVX2) encoder = pk_encoder_avx2(type);
  if (!encoder) encoder = pk_encoder_k(level, type);
  const pk_format *format = pk_format_of(type);
  return encoder ? encoder : format ? format->encode : NULL;
}

void pk_decode(int32_t level, int32_t type, const void *w, int64_t row_bytes, int64_t rows, int64_t k, float *values, int32_t part, int32_t parts) {
  const pk_format *format = pk_format_of(type);
  if (!format) return;
  pk_decode_fn *decode = pk_decoder(level, type);
  if (rows == 1) {
    const pk_range share = pk_share(k, pk_max(format->block_values, PK_GRAIN), part, parts);
    if (share.begin < share.end) decode(w, share.begin, share.end - share.begin, values + share.begin);
    return;
  }
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t row = share.begin; row < share.end; row++) decode((const uint8_t *)w + row * row_bytes, 0, k, values + row * k);
}

void pk_encode(int32_t level, int32_t type, const float *values, int64_t rows, int64_t k, void *w, int64_t row_bytes, int32_t part, int32_t parts) {
  pk_encode_fn *encode = pk_encoder(level, type);
  if (!encode) return;
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t row = share.begin; row < share.end; row++) encode(values + row * k, (uint8_t *)w + row * row_bytes, (size_t)k);
}

void pk_convert(int32_t level, const void *from, int32_t from_type, void *to, int32_t to_type, size_t count, int32_t part, int32_t parts) {
  const pk_format *source = pk_format_of(from_type), *target = pk_format_of(to_type);
  if (!source || !target || source->block_values != 1 || target->block_values != 1) return;
  const pk_range share = pk_share((int64_t)count, PK_GRAIN, part, parts);
  const uint8_t *x = from;
  uint8_t *y = to;
  if (from_type == to_type) {
    memmove(y + share.begin * target->block_bytes, x + share.begin * source->block_bytes, (size_t)((share.end - share.begin) * source->block_bytes));
    return;
  }
  pk_decode_fn *decode = pk_decoder(level, from_type);
  pk_encode_fn *encode = pk_encoder(level, to_type);
  float values[256]; /* through f32 by the boxful: exact in the middle, rounded once at the end */
  for (int64_t i = share.begin; i < share.end; i += 256) {
    const int64_t box = pk_min(256, share.end - i);
    decode(x, i, box, values);
    encode(values, y + i * target->block_bytes, (size_t)box);
  }
}
