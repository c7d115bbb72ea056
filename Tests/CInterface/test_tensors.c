/* Named arrays: setting, reading, files. */
#include "fixtures.h"

TEST(arrays_come_back_as_they_went_in) {
  static const struct { int32_t type; size_t size; } types[] = {{PEFT_F32, 4}, {PEFT_F16, 2}, {PEFT_I8, 1}, {PEFT_I16, 2}, {PEFT_I32, 4},
                                                                {PEFT_I64, 8}, {PEFT_F64, 8}, {PEFT_BF16, 2}, {PEFT_U8, 1}, {PEFT_BOOL, 1}};
  peft_context *context = open_context(1);
  peft_tensors *tensors;
  OK(peft_tensors_create(&tensors, context, &error));
  unsigned char data[48];
  for (int i = 0; i < 48; i++) data[i] = (unsigned char)i;
  const int64_t shape[3] = {1, 2, 3};
  for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
    char name[16];
    snprintf(name, sizeof name, "array %d", (int)i);
    OK(peft_tensors_set(tensors, name, types[i].type, 3, shape, data, &error));
    peft_array array = PEFT_ARRAY_INIT;
    OK(peft_tensors_get(&array, tensors, name, &error));
    CHECK(array.type == types[i].type && array.rank == 3 && array.shape[2] == 3 && array.shape[3] == 0 && array.size == 6 * types[i].size);
    CHECK(memcmp(array.data, data, array.size) == 0 && array.data != data);
  }
  CHECK(peft_tensors_count(tensors) == 10);
  CHECK(strcmp(peft_tensors_name(tensors, 3), "array 3") == 0);
  CHECK(peft_tensors_name(tensors, 10) == NULL && peft_tensors_name(tensors, -1) == NULL && peft_tensors_name(tensors, INT64_MAX) == NULL);
  peft_tensors_free(tensors), peft_context_free(context);
}

TEST(scalars_empty_arrays_and_replacing) {
  peft_context *context = open_context(1);
  peft_tensors *tensors;
  OK(peft_tensors_create(&tensors, context, &error));
  const float one = 1, two[2] = {2, 3};
  peft_array array = PEFT_ARRAY_INIT;
  OK(peft_tensors_set(tensors, "x", PEFT_F32, 0, NULL, &one, &error));
  OK(peft_tensors_get(&array, tensors, "x", &error));
  CHECK(array.rank == 0 && array.size == 4);
  const char *name = peft_tensors_name(tensors, 0);
  OK(peft_tensors_set(tensors, "x", PEFT_F32, 1, (int64_t[]){2}, two, &error));
  OK(peft_tensors_get(&array, tensors, "x", &error));
  CHECK(array.rank == 1 && array.size == 8 && ((const float *)array.data)[1] == 3);
  CHECK(peft_tensors_count(tensors) == 1 && peft_tensors_name(tensors, 0) == name);
  OK(peft_tensors_set(tensors, "nothing", PEFT_I64, 2, (int64_t[]){0, 5}, NULL, &error));
  OK(peft_tensors_get(&array, tensors, "nothing", &error));
  CHECK(array.size == 0 && array.shape[1] == 5);
  peft_tensors_free(tensors), peft_context_free(context);
}

TEST(wrong_arrays_are_refused) {
  peft_context *context = open_context(1);
  peft_tensors *tensors;
  OK(peft_tensors_create(&tensors, context, &error));
  const float values[4] = {0};
  const int64_t two[2] = {2, 2}, huge[2] = {INT64_MAX, INT64_MAX}, negative[1] = {-1}, large[1] = {INT64_MAX / 4};
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, NULL, PEFT_F32, 2, two, values, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, "\xff\xfe", PEFT_F32, 2, two, values, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "12345", peft_tensors_set(tensors, "x", 12345, 2, two, values, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, "x", PEFT_F32, -1, two, values, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "9", peft_tensors_set(tensors, "x", PEFT_F32, 9, two, values, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, "x", PEFT_F32, 2, NULL, values, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, "x", PEFT_F32, 1, negative, values, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, "x", PEFT_F32, 2, huge, values, &error));
  CHECK(peft_tensors_set(tensors, "x", PEFT_F32, 1, large, values, &error) < 0);
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(tensors, "x", PEFT_F32, 2, two, NULL, &error));
  CHECK(peft_tensors_count(tensors) == 0);
  peft_array array = PEFT_ARRAY_INIT;
  array.size = 99, array.data = values;
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "nobody", peft_tensors_get(&array, tensors, "nobody", &error));
  CHECK(array.size == 0 && array.data == NULL && array.struct_size == sizeof array);
  array.struct_size = 1;
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_get(&array, tensors, "x", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_get(NULL, tensors, "x", &error));
  peft_tensors_free(tensors), peft_context_free(context);
}

TEST(an_older_peft_array_is_filled_as_far_as_it_goes) {
  peft_context *context = open_context(1);
  peft_tensors *tensors;
  OK(peft_tensors_create(&tensors, context, &error));
  const float one = 1;
  OK(peft_tensors_set(tensors, "x", PEFT_F32, 0, NULL, &one, &error));
  peft_array array = PEFT_ARRAY_INIT;
  array.struct_size = (uint32_t)offsetof(peft_array, size);
  array.size = 77;
  OK(peft_tensors_get(&array, tensors, "x", &error));
  CHECK(array.data != NULL && array.size == 77);
  peft_tensors_free(tensors), peft_context_free(context);
}

TEST(files) {
  peft_context *context = open_context(1);
  peft_tensors *tensors, *loaded = NULL;
  OK(peft_tensors_create(&tensors, context, &error));
  const float values[6] = {1, 2, 3, 4, 5, 6};
  const int64_t ids[2] = {INT64_MIN, INT64_MAX};
  OK(peft_tensors_set(tensors, "b", PEFT_F32, 2, (int64_t[]){2, 3}, values, &error));
  OK(peft_tensors_set(tensors, "a", PEFT_I64, 1, (int64_t[]){2}, ids, &error));
  OK(peft_tensors_save(tensors, SCRATCH("arrays.safetensors"), &error));
  OK(peft_tensors_load(&loaded, context, SCRATCH("arrays.safetensors"), &error));
  CHECK(peft_tensors_count(loaded) == 2 && difference(tensors, loaded, "b") == 0);
  peft_array array = PEFT_ARRAY_INIT;
  OK(peft_tensors_get(&array, loaded, "a", &error));
  CHECK(array.type == PEFT_I64 && memcmp(array.data, ids, sizeof ids) == 0);
  peft_tensors_free(loaded);
  FAILS(PEFT_ERROR_NOT_FOUND, peft_tensors_load(&loaded, context, SCRATCH("absent.safetensors"), &error));
  CHECK(loaded == NULL);
  FAILS(PEFT_ERROR_FORMAT, peft_tensors_load(&loaded, context, MODEL_FILE("config.json"), &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_load(&loaded, context, NULL, &error));
  CHECK(peft_tensors_load(&loaded, context, "", &error) < 0 && peft_tensors_load(&loaded, context, scratch_folder, &error) < 0);
  /* A folder that cannot be: below a file. */
  FAILS(PEFT_ERROR_IO, peft_tensors_save(tensors, SCRATCH("arrays.safetensors/below.safetensors"), &error));
  CHECK(peft_tensors_save(tensors, "", &error) < 0 && peft_tensors_save(tensors, scratch_folder, &error) < 0);
  peft_tensors_free(tensors), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(arrays_come_back_as_they_went_in);
  RUN(scalars_empty_arrays_and_replacing);
  RUN(wrong_arrays_are_refused);
  RUN(an_older_peft_array_is_filled_as_far_as_it_goes);
  RUN(files);
  return finish();
}
