/* A test harness in one header: TEST(name) { … CHECK(…) … }, RUN(name) in main, and "N passed, N failed" at the end.
 *
 * Programs get two arguments: a folder with a tiny model (config.json, model.safetensors, tokenizer.json …) and an empty
 * folder of their own to write in. */
#ifndef HARNESS_H
#define HARNESS_H

#include "peftswift.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed_tests, failed_tests, failed_checks;
static peft_error error = PEFT_ERROR_INIT;
static const char *model_folder, *scratch_folder;

#define TEST(name) static void name(void)

#define RUN(name)                                                        \
  do {                                                                   \
    failed_checks = 0;                                                   \
    name();                                                              \
    if (failed_checks) {                                                 \
      failed_tests++;                                                    \
      printf("FAIL %s\n", #name);                                        \
    } else {                                                             \
      passed_tests++;                                                    \
    }                                                                    \
    fflush(stdout);                                                      \
  } while (0)

#define SKIP(...) (printf("SKIP "), printf(__VA_ARGS__), printf("\n"))

/* Prints what was expected, where, and the library's message. */
static inline int report_check(int is_right, const char *what, const char *file, int line) {
  if (is_right) return 1;
  failed_checks++;
  printf("  %s:%d: %s\n", file, line, what);
  if (error.code) printf("    last error %d: %s\n", (int)error.code, error.message);
  return 0;
}

#define CHECK(condition) report_check((condition) != 0, #condition, __FILE__, __LINE__)

/* A call that must succeed; its last argument is &error. */
#define OK(call) report_check((call) == PEFT_OK, #call, __FILE__, __LINE__)

/* A call that must fail with this code and say why. */
#define FAILS(expected, call) \
  report_check((call) == (expected) && error.code == (expected) && error.message[0] != 0, #call " gives " #expected, __FILE__, __LINE__)

/* The same, and the message must name something. */
#define FAILS_NAMING(expected, part, call) \
  report_check((call) == (expected) && error.code == (expected) && strstr(error.message, part) != NULL, #call " gives " #expected " naming " part, __FILE__, __LINE__)

static inline int finish(void) {
  printf("%d passed, %d failed\n", passed_tests, failed_tests);
  return failed_tests != 0;
}

static inline void start(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s model-folder scratch-folder\n", argv[0]);
    exit(2);
  }
  model_folder = argv[1];
  scratch_folder = argv[2];
}

/* A path in one of the folders; the last eight stay valid. */
static inline const char *path_in(const char *folder, const char *name) {
  static char paths[8][4096];
  static int next;
  char *path = paths[next++ % 8];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}
#define MODEL_FILE(name) path_in(model_folder, name)
#define SCRATCH(name) path_in(scratch_folder, name)

#endif
