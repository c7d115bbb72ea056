/* In C because the scheduler's affinity functions are GNU extensions that Swift's Glibc module does not show. */
#define _GNU_SOURCE
#include <sched.h>

#include "kernels.h"

int32_t pk_usable_processors(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}
