/* The table of weight formats. A new format is a row here, a decoder and an encoder; everything else (products in all
 * directions, gathers, norms, conversions) works from the row. */
#include "formats.h"
#include "half.h"

#define ROW(TYPE, NAME, VALUES, BYTES) \
  static const pk_format format_##NAME = {TYPE, #NAME, VALUES, BYTES, pk_decode_##NAME, pk_encode_##NAME}
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

pk_decode_fn *pk_decoder(int32_t level, int32_t type) {
  pk_decode_fn *decoder = NULL;
  if (level >= PK_LEVEL_AVX512) decoder = pk_decoder_avx512(type);
  if (!decoder && level >= PK_LEVEL_AVX2) decoder = pk_decoder_avx2(type);
  const pk_format *format = pk_format_of(type);
  return decoder ? decoder : format ? format->decode : NULL;
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
  int64_t first, end;
  pk_share((int64_t)(count / (size_t)format->block_values), part, parts, &first, &end);
  pk_decoder(level, type)((const uint8_t *)blocks + first * format->block_bytes, values + first * format->block_values,
                          (size_t)((end - first) * format->block_values));
}

void pk_convert(int32_t level, const void *from, int32_t from_type, void *to, int32_t to_type, size_t count, int32_t part, int32_t parts) {
  const pk_format *source = pk_format_of(from_type), *target = pk_format_of(to_type);
  if (!source || !target || source->block_values != 1 || target->block_values != 1) return;
  int64_t first, end;
  pk_share((int64_t)count, part, parts, &first, &end);
  const uint8_t *x = (const uint8_t *)from + first * source->block_bytes;
  uint8_t *y = (uint8_t *)to + first * target->block_bytes;
  const size_t n = (size_t)(end - first);
  if (from_type == to_type) {
    memmove(y, x, n * (size_t)source->block_bytes);
    return;
  }
  pk_decode_fn *decode = pk_decoder(level, from_type);
  pk_encode_fn *encode = pk_encoder(level, to_type);
  float values[256]; /* through f32 by the boxful: exact in the middle, rounded once at the end */
  for (size_t i = 0; i < n; i += 256) {
    const size_t box = n - i < 256 ? n - i : 256;
    decode(x + i * (size_t)source->block_bytes, values, box);
    encode(values, y + i * (size_t)target->block_bytes, box);
  }
}
