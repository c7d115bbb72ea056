/* Compiles a kernel file once per instruction set. The file includes itself through this header:
 *
 *   #ifndef LEVEL
 *   #define BODY "norms.c"
 *   #include "levels.h"
 *   void pk_f(int32_t level, …) { AT_LEVEL(level, f)(…); }    // seen once: picks the variant
 *   #else
 *   static void NAME(f)(…) { … vectors of vector.h … }       // seen once per level: f_portable, f_avx2, …
 *   #endif
 *
 * The body is written once, in vectors of WIDTH lanes, so the portable variant (4 lanes) is the readable reference and
 * the fast ones are the same arithmetic, wider. No include guard: included once by each kernel file.
 * Files that wait for memory, or that nothing waits for, define AVX2_IS_ENOUGH: AVX-512 without bf16 then takes AVX2's variant.
 */
#include <math.h>
#include <string.h>
#include "half.h"
#include "kernels.h"
#include "share.h"

#if defined(__x86_64__) && defined(AVX2_IS_ENOUGH)
#include <immintrin.h>
#define AT_LEVEL(level, f) ((level) >= PK_LEVEL_AVX512_BF16 ? f##_avx512bf16 : (level) >= PK_LEVEL_AVX2 ? f##_avx2 : f##_portable)
#elif defined(__x86_64__)
#include <immintrin.h>
#define AT_LEVEL(level, f)                                 \
  ((level) >= PK_LEVEL_AVX512_BF16 ? f##_avx512bf16        \
   : (level) == PK_LEVEL_AVX512    ? f##_avx512            \
   : (level) == PK_LEVEL_AVX2      ? f##_avx2              \
                                   : f##_portable)
#else
#define AT_LEVEL(level, f) ((void)(level), f##_portable)
#endif

#define JOIN_(f, suffix) f##_##suffix
#define JOIN(f, suffix) JOIN_(f, suffix)
#define NAME(f) JOIN(f, SUFFIX)

/* Where faster ones exist, the portable variant is kept small instead. */
#if defined(__x86_64__)
#pragma clang attribute push(__attribute__((minsize)), apply_to = function)
#define IS_SMALL 1
#else
#define IS_SMALL 0
#endif
#define LEVEL 0
#define SUFFIX portable
#define WIDTH 4
#include "vector.h"
#include BODY
#undef LEVEL
#undef SUFFIX
#undef WIDTH
#undef IS_SMALL
#if defined(__x86_64__)
#pragma clang attribute pop
#endif

#if defined(__x86_64__)
#define IS_SMALL 0
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define LEVEL 1
#define SUFFIX avx2
#define WIDTH 8
#include "vector.h"
#include BODY
#undef LEVEL
#undef SUFFIX
#undef WIDTH
#pragma clang attribute pop

#ifndef AVX2_IS_ENOUGH
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#define LEVEL 2
#define SUFFIX avx512
#define WIDTH 16
#include "vector.h"
#include BODY
#undef LEVEL
#undef SUFFIX
#undef WIDTH
#pragma clang attribute pop
#endif

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni"))), apply_to = function)
#define LEVEL 3
#define SUFFIX avx512bf16
#define WIDTH 16
#include "vector.h"
#include BODY
#undef LEVEL
#undef SUFFIX
#undef WIDTH
#pragma clang attribute pop
#endif
