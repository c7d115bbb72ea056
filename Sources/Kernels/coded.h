/* Coded formats: a value is an entry of a small table, picked by a code of four or eight bits, times the scale of its block.
 * They are bitsandbytes' (nf4, fp4, blockwise8): blocks are cut from the flattened matrix, so that a block may begin in
 * one row and end in the next; and scales may be codes themselves (double quantisation).
 *
 * Here each row carries everything that its decoding needs, so that rows can be viewed, gathered and stacked like those of
 * any format (a block that two rows share has its scale in both):
 *
 *     u32 blocks    that have values in this row
 *     u16 phase     values of the first of them that lie in rows before
 *     u8  shift     log2 of the block size, 5 … 12
 *     u8  doubled
 *     doubled 0:    f32 scales[blocks]
 *     doubled 1:    f32 offset; u32 phase of the first block among its 256; f32 nested[(blocks + 254) / 256 + 1];
 *                   u8 scale codes[blocks], padded to fours.   scale = dynamic[code]·nested + offset
 *     codes         of four bits the first value in the high ones (as bitsandbytes packs them); padded to fours
 *
 * A row is made by pk_coded_write only, never read from a file as it is: what it says of itself is true. */
#ifndef PK_CODED_H
#define PK_CODED_H

#include "formats.h"

extern const float pk_nf4_values[16], pk_fp4_values[16], pk_dynamic_values[256], pk_dynamic_unsigned_values[256];
extern const uint16_t pk_dynamic_places[255];

enum { pk_coded_head = 8, pk_nested_block = 256 };

/* A row, taken apart. */
typedef struct pk_coded_row {
  int64_t blocks, phase;
  int32_t shift, doubled;
  const float *scales, *nested; /* one of them */
  const uint8_t *scale_codes;
  float offset;
  int64_t nested_phase;
  const uint8_t *codes;
} pk_coded_row;

static inline int64_t pk_nested_count(int64_t blocks) { return (blocks + pk_nested_block - 2) / pk_nested_block + 1; }

static inline pk_coded_row pk_coded_row_at(const void *row) {
  const uint8_t *p = row;
  pk_coded_row r = {.blocks = pk_load32(p), .phase = pk_load16(p + 4), .shift = p[6], .doubled = p[7]};
  p += pk_coded_head;
  if (r.doubled) {
    r.offset = pk_float(pk_load32(p)), r.nested_phase = pk_load32(p + 4), r.nested = (const float *)(p + 8);
    r.scale_codes = p + 8 + 4 * pk_nested_count(r.blocks);
    r.codes = r.scale_codes + pk_round_up(r.blocks, 4);
  } else {
    r.scales = (const float *)p, r.codes = p + 4 * r.blocks;
  }
  return r;
}

/* The scale of block b of the row. The product is rounded before the offset is added, as in bitsandbytes. */
static inline float pk_coded_scale(const pk_coded_row *r, int64_t b) {
#pragma STDC FP_CONTRACT OFF
  if (!r->doubled) return r->scales[b];
  const float product = pk_dynamic_values[r->scale_codes[b]] * r->nested[(r->nested_phase + b) / pk_nested_block];
  return product + r->offset;
}

static inline const float *pk_coded_table(int32_t type) {
  return type == PK_NF4 ? pk_nf4_values : type == PK_FP4 ? pk_fp4_values : pk_dynamic_values;
}

static inline int32_t pk_is_coded(int32_t type) { return type == PK_NF4 || type == PK_FP4 || type == PK_BLOCKWISE8; }

#endif
