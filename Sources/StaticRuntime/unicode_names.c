#include <stdint.h>

#include "StaticRuntime.h"

/* The statically linked Swift runtime carries the English name of every Unicode character (535 KB) for a property of
 * Unicode.Scalar that nothing here reads. The release library is linked with --wrap=_swift_stdlib_getScalarName (Makefile),
 * which puts this function in the place of the runtime's; its tables then have no user and are left out.
 * 0: the character has no name. */
intptr_t __wrap__swift_stdlib_getScalarName(uint32_t scalar, uint8_t *buffer, intptr_t capacity);
intptr_t __wrap__swift_stdlib_getScalarName(uint32_t scalar, uint8_t *buffer, intptr_t capacity) {
  (void)scalar, (void)buffer, (void)capacity;
  return 0;
}
