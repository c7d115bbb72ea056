/* Arrays and models in weight formats. */
#include "fixtures.h"

static peft_tensors *make_array(const peft_context *context, const char *name, float scale) {
  static float data[4 * 64];
  for (int i = 0; i < 4 * 64; i++) data[i] = scale * (float)((i * 37) % 101 - 50);
  peft_tensors *tensors = NULL;
  OK(peft_tensors_create(&tensors, context, &error));
  OK(peft_tensors_set(tensors, name, PEFT_F32, 2, (int64_t[]){4, 64}, data, &error));
  return tensors;
}

TEST(arrays) {
  peft_context *context = open_context(1);
  peft_tensors *values = make_array(context, "w", 0.01f), *quantized = NULL, *back = NULL;
  peft_array array = PEFT_ARRAY_INIT;
  OK(peft_tensors_quantize(&quantized, values, "{\"scheme\": \"nf4\"}", &error));
  CHECK(peft_tensors_count(quantized) == 4);
  OK(peft_tensors_get(&array, quantized, "w", &error));
  CHECK(array.type == PEFT_U8 && array.rank == 2 && array.shape[0] == 128 && array.shape[1] == 1);
  OK(peft_tensors_get(&array, quantized, "w.quant_state.bitsandbytes__nf4", &error));
  OK(peft_tensors_dequantize(&back, quantized, &error));
  const double error_of_four_bits = difference(values, back, "w");
  CHECK(error_of_four_bits > 0 && error_of_four_bits < 256 * 0.05);
  peft_tensors_free(quantized), peft_tensors_free(back);
  OK(peft_tensors_quantize(&quantized, values, "{\"scheme\": \"q8_0\"}", &error));
  OK(peft_tensors_get(&array, quantized, "w", &error));
  CHECK(array.type == 8 && array.size == 4 * 2 * 34);
  OK(peft_tensors_dequantize(&back, quantized, &error));
  CHECK(difference(values, back, "w") < 256 * 0.005);
  peft_tensors_free(quantized), peft_tensors_free(back);

  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "scheme", peft_tensors_quantize(&quantized, values, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "nf3", peft_tensors_quantize(&quantized, values, "{\"scheme\": \"nf3\"}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "100", peft_tensors_quantize(&quantized, values, "{\"scheme\": \"nf4\", \"block_size\": 100}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "w", peft_tensors_quantize(&quantized, values, "{\"scheme\": \"q4_K\"}", &error));
  CHECK(quantized == NULL);
  FAILS(PEFT_ERROR_HANDLE, peft_tensors_quantize(&quantized, NULL, "{\"scheme\": \"nf4\"}", &error));
  FAILS(PEFT_ERROR_HANDLE, peft_tensors_dequantize(&back, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_dequantize(NULL, values, &error));
  peft_tensors_free(values);

  values = make_array(context, "w", NAN);
  FAILS(PEFT_ERROR_NUMERIC, peft_tensors_quantize(&quantized, values, "{\"scheme\": \"fp4\"}", &error));
  peft_tensors_free(values);
  /* Formats whose rows describe themselves are the library's own: nobody hands them in. */
  OK(peft_tensors_create(&values, context, &error));
  for (int32_t type = 1020; type <= 1023; type++) {
    static const char junk[4096];
    FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_set(values, "w", type, 2, (int64_t[]){4, 64}, junk, &error));
    FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_borrow(values, "w", type, 2, (int64_t[]){4, 64}, junk, &error));
  }
  peft_tensors_free(values), peft_context_free(context);
}

TEST(parts_that_do_not_fit) {
  peft_context *context = open_context(1);
  peft_tensors *values = make_array(context, "w", 0.01f), *back = NULL;
  static const char *const states[] = {"{}", "[", "{\"blocksize\": 64}", "{\"blocksize\": 64, \"shape\": [4, 64], \"nested_blocksize\": 7}",
                                       "{\"blocksize\": 0, \"shape\": [4, 64]}", "{\"blocksize\": 64, \"shape\": [4611686018427387904, 4]}"};
  for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
    peft_tensors *quantized = NULL;
    OK(peft_tensors_quantize(&quantized, values, "{\"scheme\": \"nf4\", \"double_quant\": true}", &error));
    OK(peft_tensors_set(quantized, "w.quant_state.bitsandbytes__nf4", PEFT_U8, 1, (int64_t[]){(int64_t)strlen(states[i])}, states[i], &error));
    int32_t code = peft_tensors_dequantize(&back, quantized, &error);
    CHECK((code == PEFT_ERROR_FORMAT || code == PEFT_ERROR_UNSUPPORTED) && back == NULL);
    peft_tensors_free(quantized);
  }
  peft_tensors_free(values), peft_context_free(context);
}

static int32_t stop(void *user_data, int64_t done, int64_t total) {
  ++*(int *)user_data;
  return done > 0 && total > done;
}

TEST(models) {
  peft_context *context = open_context(2);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *before = run_forward(model, batch), *after;
  int calls = 0;
  FAILS(PEFT_ERROR_CANCELLED, peft_model_quantize(NULL, 0, NULL, model, "{\"scheme\": \"nf4\"}", stop, &calls, &error));
  CHECK(calls == 2);
  after = run_forward(model, batch); /* one layer has its new format */
  CHECK(difference(before, after, "logits") > 0);
  peft_tensors_free(after), peft_model_free(model);
  model = open_model(context);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "q_proj", peft_model_quantize(NULL, 0, NULL, model, "{\"scheme\": \"q6_K\"}", NULL, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "schema", peft_model_quantize(NULL, 0, NULL, model, "{\"schema\": \"nf4\"}", NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_quantize(NULL, 0, NULL, model, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_HANDLE, peft_model_quantize(NULL, 0, NULL, NULL, "{\"scheme\": \"nf4\"}", NULL, NULL, &error));
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_STATE, "adapters", peft_model_quantize(NULL, 0, NULL, model, "{\"scheme\": \"nf4\"}", NULL, NULL, &error));
  OK(peft_adapter_remove(model, "a", &error));

  char report[8192];
  size_t needed;
  OK(peft_model_quantize(report, sizeof report, &needed, model, "{\"scheme\": \"fp4\", \"block_size\": 32, \"double_quant\": true, \"skip\": []}", NULL, NULL, &error));
  CHECK(needed < sizeof report && has(report, "\"lm_head\"") && has(report, "\"rms\"") && has(report, "\"scheme\": \"fp4\"") && !has(report, "\"output\""));
  after = run_forward(model, batch);
  CHECK(difference(before, after, "logits") > 0);
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 2);
  OK(peft_model_export(model, SCRATCH("four"), NULL, &error));
  OK(peft_adapter_remove(model, "a", &error));
  peft_model_options options = PEFT_MODEL_OPTIONS_INIT;
  options.compute = PEFT_COMPUTE_F32;
  peft_model *again = NULL;
  OK(peft_model_open(&again, context, SCRATCH("four"), &options, &error));
  peft_tensors *same = run_forward(again, batch);
  CHECK(difference(after, same, "logits") == 0);
  peft_tensors_free(before), peft_tensors_free(after), peft_tensors_free(same), peft_tensors_free(batch);
  peft_model_free(model), peft_model_free(again), peft_context_free(context);
}

/* What outputs lose on a text, and products that round activations beside outlier columns. */
TEST(outputs_and_outliers) {
  peft_context *context = open_context(2);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *plain, *rounded;
  char report[8192];
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "calibration_text", peft_model_quantize(NULL, 0, NULL, model, "{\"scheme\": \"int8\", \"calibration_text\": \"\"}", NULL, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "llm_int8_threshold", peft_model_quantize(NULL, 0, NULL, model, "{\"scheme\": \"q8_0\", \"llm_int8_threshold\": 6}", NULL, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "-6", peft_model_quantize(NULL, 0, NULL, model, "{\"scheme\": \"int8\", \"llm_int8_threshold\": -6}", NULL, NULL, &error));
  OK(peft_model_quantize(report, sizeof report, NULL, model, "{\"scheme\": \"int8\", \"calibration_text\": \"a hammer and a nail\"}", NULL, NULL, &error));
  CHECK(has(report, "\"output\": 0.0"));
  plain = run_forward(model, batch);
  OK(peft_model_quantize(report, sizeof report, NULL, model, "{\"scheme\": \"int8\", \"llm_int8_threshold\": 6}", NULL, NULL, &error));
  CHECK(has(report, "\"llm_int8_threshold\": 6") && has(report, "\"max\": 0.0,"));
  rounded = run_forward(model, batch);
  CHECK(difference(plain, rounded, "logits") > 0);
  peft_tensors_free(plain), peft_tensors_free(rounded), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(arrays);
  RUN(parts_that_do_not_fit);
  RUN(models);
  RUN(outputs_and_outliers);
  return finish();
}
