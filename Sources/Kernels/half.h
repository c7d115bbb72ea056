/* f16 and bf16 in plain C. No _Float16: on the portable level it would call a compiler run-time library. */
#ifndef PK_HALF_H
#define PK_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t pk_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

static inline float pk_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static inline uint16_t pk_load16(const void *p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return h;
}

static inline uint32_t pk_load32(const void *p) {
  uint32_t u;
  memcpy(&u, p, 4);
  return u;
}

static inline float pk_bf16_to_f32(uint16_t h) { return pk_float((uint32_t)h << 16); }

/* A place, or a vector of places (uint32), becomes a number of 16 bits drawn from it (a finaliser of MurmurHash3): what is added below a bf16's
 * last bit to round it up with the chance that it lies above its lower neighbour. */
#define PK_DRAW(place)                                             \
  do {                                                             \
    (place) *= 0x9E3779B1u;                                        \
    (place) = ((place) ^ ((place) >> 15)) * 0x85EBCA77u;           \
    (place) = ((place) ^ ((place) >> 13)) * 0xC2B2AE3Du >> 16;     \
  } while (0)

/* Round to nearest even; a NaN stays a (quiet) NaN. */
static inline uint16_t pk_f32_to_bf16(float f) {
  const uint32_t u = pk_bits(f);
  const uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? (u >> 16 | 64) : rounded);
}

static inline float pk_round_bf16(float f) { return pk_bf16_to_f32(pk_f32_to_bf16(f)); }

/* Exact. The exponent is moved by adding 112 (normal) or by a float subtraction (subnormal); infinities and NaN get
 * the rest of the way to 255. Branch-free so that loops vectorise. */
static inline float pk_f16_to_f32(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = (uint32_t)(h & 0x7fff) << 13;
  const uint32_t exponent = magnitude & 0x0f800000;
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t special = normal + (112u << 23);
  const uint32_t subnormal = pk_bits(pk_float(magnitude + (113u << 23)) - pk_float(113u << 23));
  const uint32_t value = exponent == 0x0f800000 ? special : exponent == 0 ? subnormal : normal;
  return pk_float(sign | value);
}

/* Round to nearest even, overflow to infinity. */
static inline uint16_t pk_f32_to_f16(float f) {
  const uint32_t u = pk_bits(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* ≥ 65520 rounds to infinity */
  if (magnitude < 0x38800000) {                                  /* below 2⁻¹⁴: adding ½ rounds at bit 2⁻²⁴ */
    return (uint16_t)(sign | (pk_bits(pk_float(magnitude) + 0.5f) - pk_bits(0.5f)));
  }
  return (uint16_t)(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
}

#endif
