/* A program of somebody else: finds the installed library by pkg-config or CMake, makes a context, says the version. */
#include <peftswift.h>
#include <stdio.h>

int main(void) {
  peft_error error = PEFT_ERROR_INIT;
  peft_context *context = NULL;
  if (peft_context_create(&context, NULL, &error) < 0) return fprintf(stderr, "%s\n", error.message), 1;
  peft_context_free(context);
  int is_same = peft_version_number() == 10000 * PEFT_VERSION_MAJOR + 100 * PEFT_VERSION_MINOR + PEFT_VERSION_PATCH;
  return puts(peft_version()) < 0 || !is_same;
}
