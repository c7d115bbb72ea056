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
ROW(PK_Q4_K, q4_K, 256, 144);
ROW(PK_Q5_K, q5_K, 256, 176);
ROW(PK_Q6_K, q6_K, 256, 210);

static const pk_format *const table[] = {
    &format_f32,  &format_f16,  &format_bf16, &format_q4_0, &format_q4_1, &format_q5_0,
    &format_q5_1, &format_q8_0, &format_q4_K, &format_q5_K, &format_q6_K,
};
#define ROWS ((int32_t)(sizeof table / sizeof table[0]))

const pk_format *pk_format_of(int32_t type) {
  for (int32_t i = 0; i < ROWS; i++) {
    if (table[i]->type == type) return table[i];
  }
  return NULL;
}

const pk_format *const *pk_formats(int32_t *count) {
  *count = ROWS;
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
    case PK_Q4_K: return pk_decode_q4_K;
    case PK_Q5_K: return pk_decode_q5_K;
    case PK_Q6_K: return pk_decode_q6_K;
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
  const pk_format *format = pk_format_of(type);
  return encoder ? encoder : format ? format->encode : NULL;
}

void pk_decode(int32_t level, int32_t type, const void *blocks, float *values, size_t count, int32_t part, int32_t parts) {
  const pk_format *format = pk_format_of(type);
  if (!format) return;
  const pk_range share = pk_share((int64_t)count, pk_max(format->block_values, PK_GRAIN), part, parts);
  pk_decoder(level, type)(blocks, share.begin, share.end - share.begin, values + share.begin);
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
