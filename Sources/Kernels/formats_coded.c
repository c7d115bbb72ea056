/* Encoding and decoding of the coded formats (coded.h), and row-wise int8. The bytes are bitsandbytes' (0.50, its CPU
 * kernels); constants and rounding follow it step by step. */
#include "coded.h"

#include <math.h>

#pragma STDC FP_CONTRACT OFF

/* ---- rows ---- */

static int64_t gcd(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

/* Blocks that a row of k values can have part of: it begins at a multiple of gcd(k, block) within a block. */
static int64_t most_blocks(int64_t k, int64_t block) { return (block - gcd(k, block) + k + block - 1) / block; }

int64_t pk_coded_row_bytes(int32_t type, int64_t k, int64_t block, int32_t doubled) {
  const int64_t blocks = most_blocks(k, block);
  const int64_t scales = doubled ? 8 + 4 * pk_nested_count(blocks) + pk_round_up(blocks, 4) : 4 * blocks;
  return pk_coded_head + scales + pk_round_up(type == PK_BLOCKWISE8 ? k : (k + 1) / 2, 4);
}

const float *pk_coded_values(int32_t type) { return pk_coded_table(type); }

static int32_t code_at(const uint8_t *codes, int64_t i, int32_t is_byte) {
  return is_byte ? codes[i] : i & 1 ? codes[i / 2] & 15 : codes[i / 2] >> 4;
}

/* `count` codes from place `from` of one sequence to place `to` of another. */
static void copy_codes(const uint8_t *source, int64_t from, uint8_t *target, int64_t to, int64_t count, int32_t is_byte) {
  if (is_byte) {
    memcpy(target + to, source + from, (size_t)count);
    return;
  }
  int64_t i = 0;
  if (from % 2 == 0 && to % 2 == 0) {
    memcpy(target + to / 2, source + from / 2, (size_t)(count / 2));
    i = count / 2 * 2;
  }
  for (; i < count; i++) {
    uint8_t *byte = target + (to + i) / 2;
    const int32_t code = code_at(source, from + i, 0);
    *byte = (uint8_t)((to + i) & 1 ? (*byte & 0xf0) | code : (*byte & 0x0f) | code << 4);
  }
}

void pk_coded_write(const pk_coded *parts, int64_t row, int64_t k, int64_t row_bytes, void *to) {
  const int64_t first = row * k, block = first >> parts->shift, phase = first - (block << parts->shift);
  const int64_t most = most_blocks(k, (int64_t)1 << parts->shift), used = pk_min(most, parts->blocks - block);
  uint8_t *p = to;
  memset(p, 0, (size_t)row_bytes);
  const uint32_t blocks = (uint32_t)most;
  const uint16_t short_phase = (uint16_t)phase;
  memcpy(p, &blocks, 4), memcpy(p + 4, &short_phase, 2);
  p[6] = (uint8_t)parts->shift, p[7] = parts->nested != NULL;
  p += pk_coded_head;
  if (parts->nested) {
    const uint32_t nested_phase = (uint32_t)(block % pk_nested_block);
    const int64_t nested = block / pk_nested_block, count = pk_min(pk_nested_count(most), (parts->blocks + pk_nested_block - 1) / pk_nested_block - nested);
    memcpy(p, &parts->offset, 4), memcpy(p + 4, &nested_phase, 4);
    memcpy(p + 8, parts->nested + nested, (size_t)count * 4);
    p += 8 + 4 * pk_nested_count(most);
    memcpy(p, parts->scale_codes + block, (size_t)used);
    p += pk_round_up(most, 4);
  } else {
    memcpy(p, parts->scales + block, (size_t)used * 4);
    p += 4 * most;
  }
  copy_codes(parts->codes, first, p, 0, k, parts->type == PK_BLOCKWISE8);
}

void pk_coded_read(const void *from, int64_t row, int64_t k, const pk_coded *parts) {
  const pk_coded_row r = pk_coded_row_at(from);
  const int64_t first = row * k, block = first >> r.shift;
  copy_codes(r.codes, 0, (uint8_t *)parts->codes, first, k, parts->type == PK_BLOCKWISE8);
  for (int64_t b = 0; b < r.blocks && block + b < parts->blocks; b++) {
    if (((block + b) << r.shift) >= first + k) break;
    if (!r.doubled) {
      ((float *)parts->scales)[block + b] = r.scales[b];
    } else {
      ((uint8_t *)parts->scale_codes)[block + b] = r.scale_codes[b];
      ((float *)parts->nested)[(block + b) / pk_nested_block] = r.nested[(r.nested_phase + b) / pk_nested_block];
    }
  }
}

float pk_coded_offset(const void *row) { return pk_coded_row_at(row).offset; }

/* ---- codes ---- */

/* The largest magnitude of each block. bitsandbytes lets none of four-bit blocks divide by zero; the scale it keeps of a
 * whole block is the true one. */
static float magnitude(const float *x, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; i++) {
    const float a = fabsf(x[i]);
    most = a > most || a != a ? a : most; /* NaN stays */
  }
  return most;
}

/* Four bits: the nearest entry, borders halfway and theirs the lower entry's. */
static void encode4(const float *sorted, const uint8_t *order, const float *x, int64_t count, float inverse, uint8_t *codes) {
  float border[15];
  for (int i = 0; i < 15; i++) border[i] = (sorted[i] + sorted[i + 1]) / 2;
  for (int64_t i = 0; i < count; i++) {
    float v = x[i] * inverse;
    v = v < -1 ? -1 : v > 1 ? 1 : v;
    int q = 0;
    for (int j = 0; j < 15; j++) q += !(v <= border[j]);
    codes[i] = order[q];
  }
}

/* Eight bits: bitsandbytes rounds to one of 65536 places first. */
static void encode8(const float *x, int64_t count, float inverse, uint8_t *codes) {
  for (int64_t i = 0; i < count; i++) {
    float v = x[i] * inverse;
    v = v < -1 ? -1 : v > 1 ? 1 : v;
    const int32_t place = v == v ? (int32_t)((v + 1) * 32767.5f + 0.5f) : 0;
    int code = 0; /* as many as there are places at or below, of 255; without branches, which nobody could predict */
    for (int step = 128; step > 0; step /= 2) code += place >= pk_dynamic_places[code + step - 1] ? step : 0;
    codes[i] = (uint8_t)code;
  }
}

void pk_coded_encode(int32_t type, const float *values, int64_t count, int64_t block, float *scales, uint8_t *codes, int32_t part, int32_t parts) {
  static const uint8_t in_order[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static const uint8_t fp4_order[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  const uint8_t *order = type == PK_FP4 ? fp4_order : in_order;
  float sorted[16];
  for (int i = 0; i < 16; i++) sorted[i] = pk_coded_table(type)[order[i]];
  const int64_t blocks = (count + block - 1) / block;
  const pk_range share = pk_share(blocks, 1, part, parts);
  for (int64_t b = share.begin; b < share.end; b++) {
    const float *x = values + b * block;
    const int64_t size = pk_min(block, count - b * block);
    float most = magnitude(x, size);
    scales[b] = most;
    if (type == PK_BLOCKWISE8) {
      if (most == 0) {
        memset(codes + b * block, 0, (size_t)size);
      } else {
        encode8(x, size, 1 / most, codes + b * block);
      }
      continue;
    }
    uint8_t q[64];
    most = most < 1e-38f ? 1e-38f : most;
    if (size < block) scales[b] = most; /* (of a last, short block it keeps this one, and divides) */
    for (int64_t at = 0; at < size; at += 64) {
      const int64_t few = pk_min(64, size - at);
      float box[64];
      for (int64_t i = 0; i < few; i++) box[i] = size < block ? x[at + i] / most : x[at + i];
      encode4(sorted, order, box, few, size < block ? 1 : 1 / most, q);
      if (few % 2) q[few] = order[7]; /* 0 */
      uint8_t *to = codes + (b * block + at) / 2;
      for (int64_t i = 0; i < (few + 1) / 2; i++) to[i] = (uint8_t)(q[2 * i] << 4 | q[2 * i + 1]);
    }
  }
}

/* ---- decoding ---- */

static void decode(int32_t type, const void *row, int64_t first, int64_t count, float *values) {
  const pk_coded_row r = pk_coded_row_at(row);
  const float *table = pk_coded_table(type);
  const int32_t is_byte = type == PK_BLOCKWISE8;
  while (count > 0) { /* a block at a time */
    const int64_t at = r.phase + first, b = at >> r.shift, run = pk_min(count, ((b + 1) << r.shift) - at);
    const float scale = pk_coded_scale(&r, b);
    for (int64_t i = 0; i < run; i++) values[i] = table[code_at(r.codes, first + i, is_byte)] * scale;
    first += run, count -= run, values += run;
  }
}

void pk_decode_nf4(const void *row, int64_t first, int64_t count, void *values) { decode(PK_NF4, row, first, count, values); }
void pk_decode_fp4(const void *row, int64_t first, int64_t count, void *values) { decode(PK_FP4, row, first, count, values); }
void pk_decode_blockwise8(const void *row, int64_t first, int64_t count, void *values) { decode(PK_BLOCKWISE8, row, first, count, values); }

/* ---- int8, a scale for a row: { f32 largest magnitude; i8 q[k] padded to fours }, q·largest/127 (LLM.int8, arXiv:2208.07339) ---- */

void pk_decode_int8(const void *row, int64_t first, int64_t count, void *values) {
  const uint8_t *p = row;
  const float scale = pk_float(pk_load32(p));
  const int8_t *q = (const int8_t *)p + 4 + first;
  float *to = values;
  for (int64_t i = 0; i < count; i++) to[i] = (float)q[i] * scale * 7.874015718698502e-3f;
}

/* bitsandbytes quantises from f16. */
void pk_encode_int8(const float *values, void *row, size_t count) {
  uint8_t *p = row;
  int8_t *q = (int8_t *)p + 4;
  float most = 0;
  for (size_t i = 0; i < count; i++) {
    const float a = fabsf(pk_f16_to_f32(pk_f32_to_f16(values[i])));
    most = a > most || a != a ? a : most;
  }
  memcpy(p, &most, 4);
  const float factor = 1 / most * 127; /* as torch reckons 127 / most: another last bit, which decides halves */
  for (size_t i = 0; i < count; i++) {
    const float x = rintf(pk_f16_to_f32(pk_f32_to_f16(values[i])) * factor); /* half to even */
    q[i] = (int8_t)(x >= 127 ? 127 : x <= -127 ? -127 : x == x ? x : 0);
  }
  memset(q + count, 0, (size_t)(pk_round_up((int64_t)count, 4) - (int64_t)count));
}
