/* Which instruction sets may be used: the processor must have them and the operating system must save their
 * registers (XCR0). An AVX-512 instruction under a system that does not save ZMM state would fault the host. */
#define _DEFAULT_SOURCE /* syscall */
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t enabled_state(void) {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static int has(uint32_t word, int bit) { return (int)(word >> bit & 1); }

int32_t pk_best_level(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return PK_LEVEL_PORTABLE;
  const int osxsave = has(c, 27), avx = has(c, 28), fma = has(c, 12), f16c = has(c, 29);
  if (!osxsave || !avx || !fma || !f16c) return PK_LEVEL_PORTABLE;

  const uint64_t ymm = 0x06, zmm = 0xe6, tiles = 0x60000; /* SSE+AVX; + opmask, upper halves, upper sixteen; configuration and data of tiles */
  const uint64_t state = enabled_state();
  if ((state & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, 5)) return PK_LEVEL_PORTABLE;

  const int f = has(b, 16), dq = has(b, 17), bw = has(b, 30), vl = has(b, 31), vnni = has(c, 11);
  const int amx = has(d, 22) && has(d, 24) && has(d, 25); /* BF16, TILE, INT8 */
  if ((state & zmm) != zmm || !f || !dq || !bw || !vl) return PK_LEVEL_AVX2;

  if (!vnni || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !has(a, 5)) return PK_LEVEL_AVX512;
  return amx && (state & tiles) == tiles ? PK_LEVEL_AMX : PK_LEVEL_AVX512_BF16;
}

int32_t pk_take_level(int32_t level) {
  const int32_t best = pk_best_level(), taken = level < best ? level : best;
  if (taken < PK_LEVEL_AMX) return taken;
#if defined(__linux__)
  enum { ask_for_state = 0x1023, tile_data = 18 }; /* ARCH_REQ_XCOMP_PERM, since Linux 5.16 */
  return syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0 ? taken : PK_LEVEL_AVX512_BF16;
#else
  return PK_LEVEL_AVX512_BF16;
#endif
}

/* One thread, multiply-adds on registers, GFLOP/s: Zen 4 bf16 236 and f32 118; Emerald Rapids 87 and 178, and 2400 of bf16 with AMX. Intel's
 * processors with FP16 (Sapphire Rapids and later) are taken to be alike: they have AMX' tiles for bf16. */
int32_t pk_pairs_are_fast(int32_t level) {
  uint32_t a, b, c, d;
  if (level >= PK_LEVEL_AMX) return 1;
  if (level < PK_LEVEL_AVX512_BF16) return 0;
  const int is_intel = __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx && d == signature_INTEL_edx && c == signature_INTEL_ecx;
  return !(is_intel && __get_cpuid_count(7, 0, &a, &b, &c, &d) && has(d, 23));
}
#else
int32_t pk_best_level(void) { return PK_LEVEL_PORTABLE; }
int32_t pk_take_level(int32_t level) { return (void)level, PK_LEVEL_PORTABLE; }
int32_t pk_pairs_are_fast(int32_t level) { return (void)level, 0; }
#endif
