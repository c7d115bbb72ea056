/* Version, status texts, features; contexts: options, memory, several of them. */
#include "fixtures.h"
#include "peftswift.h" /* twice on purpose */

TEST(version_is_that_of_the_header) {
  char expected[32];
  snprintf(expected, sizeof expected, "%d.%d.%d", PEFT_VERSION_MAJOR, PEFT_VERSION_MINOR, PEFT_VERSION_PATCH);
  CHECK(strcmp(peft_version(), expected) == 0);
  CHECK(peft_version_number() == 10000 * PEFT_VERSION_MAJOR + 100 * PEFT_VERSION_MINOR + PEFT_VERSION_PATCH);
}

TEST(every_code_has_a_text) {
  for (int32_t code = -12; code <= 1; code++) CHECK(strcmp(peft_status_text(code), "unknown") != 0);
  CHECK(strcmp(peft_status_text(PEFT_ERROR_INTERNAL), "internal") == 0);
  CHECK(strcmp(peft_status_text(-98), "unknown") == 0 && strcmp(peft_status_text(INT32_MAX), "unknown") == 0);
}

TEST(features_in_two_calls) {
  size_t needed = 0, again = 0;
  OK(peft_features(NULL, 0, &needed, &error));
  CHECK(needed > 100);
  char *text = malloc(needed + 2);
  memset(text, 'x', needed + 2);
  OK(peft_features(text, needed, &again, &error)); /* one byte too few: nothing is written */
  CHECK(again == needed && text[0] == 'x');
  OK(peft_features(text, needed + 1, &again, &error));
  CHECK(again == needed && strlen(text) == needed && text[needed + 1] == 'x');
  CHECK(has(text, "\"LORA\"") && has(text, "\"llama\"") && has(text, "\"q4_1\"") && has(text, "\"adamw\"") && has(text, "\"cosine\"") && has(text, "\"portable\""));
  OK(peft_features(text, needed + 1, NULL, NULL)); /* neither size nor error are wanted */
  free(text);
}

TEST(error_records) {
  peft_context *context = NULL;
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 1000;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "1000", peft_context_create(&context, &options, &error));
  CHECK(context == NULL);
  CHECK(peft_context_create(&context, &options, NULL) == PEFT_ERROR_ARGUMENT); /* no record wanted */
  /* A record that was not initialised is left alone. */
  peft_error blank;
  memset(&blank, 0, sizeof blank);
  CHECK(peft_context_create(&context, &options, &blank) == PEFT_ERROR_ARGUMENT);
  CHECK(blank.code == 0 && blank.message[0] == 0);
  /* A shorter message of an imaginary older header: whole characters, with NUL, and not a byte more. */
  peft_error shorter = PEFT_ERROR_INIT;
  shorter.struct_size = (uint32_t)(offsetof(peft_error, message) + 8);
  memset(shorter.message, '#', sizeof shorter.message);
  CHECK(peft_context_create(&context, &options, &shorter) == PEFT_ERROR_ARGUMENT);
  CHECK(shorter.code == PEFT_ERROR_ARGUMENT && memchr(shorter.message, 0, 8) != NULL && shorter.message[8] == '#');
  /* A success says so in a record that was used before. */
  OK(peft_context_create(&context, NULL, &error));
  CHECK(error.code == PEFT_OK && error.message[0] == 0);
  peft_context_free(context);
}

TEST(context_options) {
  peft_context *context = NULL;
  peft_context_options options;
  memset(&options, 0xff, sizeof options);
  peft_context_options_init(&options);
  CHECK(options.struct_size == sizeof options && options.threads == 0 && options.memory_budget == 0 && options.log == NULL && options.user_data == NULL);
  peft_context_options_init(NULL);
  FAILS(PEFT_ERROR_ARGUMENT, peft_context_create(NULL, &options, &error));
  options.threads = -1;
  FAILS(PEFT_ERROR_ARGUMENT, peft_context_create(&context, &options, &error));
  options.threads = 1;
  options.level = 9;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "level", peft_context_create(&context, &options, &error));
  for (options.level = PEFT_LEVEL_AUTO; options.level <= PEFT_LEVEL_AMX; options.level++) {
    OK(peft_context_create(&context, &options, &error));
    peft_context_free(context);
  }
  options.level = 0;
  options.struct_size = 0;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "struct_size", peft_context_create(&context, &options, &error));
  options.struct_size = 0xffffffffu;
  FAILS(PEFT_ERROR_ARGUMENT, peft_context_create(&context, &options, &error));
  /* An older header: what it does not have is default. */
  options.struct_size = (uint32_t)offsetof(peft_context_options, level);
  options.level = 77;
  OK(peft_context_create(&context, &options, &error));
  peft_context_free(context);
  /* A newer header: what it has more is left alone. */
  struct { peft_context_options known; char more[64]; } newer;
  peft_context_options_init(&newer.known);
  memset(newer.more, 0xff, sizeof newer.more);
  newer.known.struct_size = sizeof newer;
  OK(peft_context_create(&context, &newer.known, &error));
  peft_context_free(context);
}

static void *half_an_allocator(void *user_data, size_t size, size_t alignment) {
  (void)user_data, (void)size, (void)alignment;
  return NULL;
}

TEST(an_allocator_needs_both_functions) {
  peft_context *context = NULL;
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.allocate = half_an_allocator;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "deallocate", peft_context_create(&context, &options, &error));
}

TEST(memory_is_accounted_for) {
  peft_context *context = open_context(1);
  char text[4096];
  size_t needed;
  OK(peft_context_memory(text, sizeof text, &needed, context, &error));
  CHECK(has(text, "\"limit\": null") && has(text, "\"live\": 0") && has(text, "\"scratch\""));
  peft_tensors *tensors;
  OK(peft_tensors_create(&tensors, context, &error));
  const int64_t shape[1] = {1000};
  static const float values[1000];
  OK(peft_tensors_set(tensors, "x", PEFT_F32, 1, shape, values, &error));
  OK(peft_context_memory(text, sizeof text, &needed, context, &error));
  CHECK(has(text, "\"live\": 4096"));
  peft_tensors_free(tensors);
  OK(peft_context_memory(text, sizeof text, &needed, context, &error));
  CHECK(has(text, "\"live\": 0") && has(text, "\"kept\": 4096"));
  OK(peft_context_trim(context, &error));
  OK(peft_context_memory(text, sizeof text, &needed, context, &error));
  CHECK(has(text, "\"kept\": 0") && has(text, "\"peak\": 0"));
  peft_context_free(context);
}

TEST(contexts_do_not_see_each_other) {
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.memory_budget = 4096;
  peft_context *small, *large = open_context(1);
  OK(peft_context_create(&small, &options, &error));
  peft_tensors *a, *b;
  OK(peft_tensors_create(&a, small, &error));
  OK(peft_tensors_create(&b, large, &error));
  const int64_t shape[1] = {4096};
  static const float values[4096];
  FAILS(PEFT_ERROR_MEMORY, peft_tensors_set(a, "x", PEFT_F32, 1, shape, values, &error));
  CHECK(error.detail > 0);
  OK(peft_tensors_set(b, "x", PEFT_F32, 1, shape, values, &error));
  peft_context_free(small);
  FAILS(PEFT_ERROR_HANDLE, peft_context_trim(small, &error));
  OK(peft_context_trim(large, &error));
  /* What came from a freed context lives on. */
  CHECK(peft_tensors_count(a) == 0);
  OK(peft_tensors_set(a, "x", PEFT_F32, 1, &(int64_t){4}, values, &error));
  CHECK(peft_tensors_count(a) == 1);
  peft_tensors_free(a), peft_tensors_free(b), peft_context_free(large);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(version_is_that_of_the_header);
  RUN(every_code_has_a_text);
  RUN(features_in_two_calls);
  RUN(error_records);
  RUN(context_options);
  RUN(an_allocator_needs_both_functions);
  RUN(memory_is_accounted_for);
  RUN(contexts_do_not_see_each_other);
  return finish();
}
