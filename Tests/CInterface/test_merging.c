/* Combining adapters: of a model, in files, from full fine-tuning; and what is refused. */
#include "fixtures.h"

static const char loha[] = "{\"peft_type\": \"LOHA\", \"r\": 2, \"target_modules\": [\"q_proj\"]}";
static const char *const ab[] = {"a", "b"};
static char report[1 << 16];
static size_t needed;

/* "a" and "b", both trained a little on a batch; "a" is active. */
static peft_model *open_with_two(const peft_context *context, const peft_tensors *batch, const char *second) {
  peft_model *model = open_model(context);
  for (int i = 0; i < 2; i++) {
    OK(peft_adapter_add(model, ab[i], i ? second : lora, i ? "{\"seed\": 5}" : NULL, &error));
    OK(peft_adapter_set_active(model, ab + i, NULL, 1, &error));
    train_a_little(model, batch, 2 + i);
  }
  OK(peft_adapter_set_active(model, ab, NULL, 1, &error));
  return model;
}

static int32_t combine(peft_model *model, const char *name, int64_t count, const float *weights, const char *options) {
  return peft_adapter_combine(report, sizeof report, &needed, model, name, ab, weights, count, options, NULL, NULL, &error);
}

static int32_t stop_at_two(void *user_data, int64_t done, int64_t total) {
  CHECK(done >= 1 && done <= total);
  *(int64_t *)user_data = done;
  return done == 2;
}

TEST(combining) {
  static const float weights[] = {0.5f, -0.25f};
  peft_context *context = open_context(1);
  peft_tensors *batch = make_batch(context), *both, *made;
  peft_model *model = open_with_two(context, batch, lora);
  OK(peft_adapter_set_active(model, ab, weights, 2, &error));
  both = run_forward(model, batch);
  OK(combine(model, "c", 2, weights, "{\"combination_type\": \"cat\"}"));
  CHECK(needed == strlen(report) && has(report, "\"rank\": 8") && has(report, "\"error\": 0.0") && has(report, "model.layers.0.self_attn.q_proj"));
  OK(peft_adapter_set_active(model, (const char *[]){"c"}, NULL, 1, &error));
  made = run_forward(model, batch);
  CHECK(difference(both, made, "logits") < 1e-3); /* cat is exactly both */
  peft_tensors_free(made);
  static const char *const types[] = {"linear", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd", "magnitude_prune",
                                      "magnitude_prune_svd", "task_arithmetic", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "slerp"};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    char options[128];
    const int is_pruned = strcmp(types[i], "linear") && strcmp(types[i], "svd") && strcmp(types[i], "task_arithmetic") && strcmp(types[i], "slerp");
    snprintf(options, sizeof options, "{\"combination_type\": \"%s\"%s}", types[i], is_pruned ? ", \"density\": 0.5" : "");
    OK(combine(model, types[i], 2, weights, options));
    OK(peft_adapter_set_active(model, types + i, NULL, 1, &error));
    made = run_forward(model, batch);
    const double changed = difference(both, made, "logits");
    CHECK(changed == changed); /* finite */
    peft_tensors_free(made);
  }
  peft_tensors_free(both), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(across_methods) {
  peft_context *context = open_context(1);
  peft_tensors *batch = make_batch(context), *both, *made;
  peft_model *model = open_with_two(context, batch, loha);
  OK(peft_adapter_set_active(model, ab, NULL, 2, &error));
  both = run_forward(model, batch);
  OK(combine(model, "c", 2, NULL, "{\"svd_energy\": 1}"));
  OK(peft_adapter_set_active(model, (const char *[]){"c"}, NULL, 1, &error));
  made = run_forward(model, batch);
  CHECK(difference(both, made, "logits") < 1e-2);
  OK(combine(model, "d", 2, NULL, "{\"svd_rank\": 1}"));
  CHECK(has(report, "\"rank\": 1") && !has(report, "\"error\": 0.0}"));
  peft_tensors_free(made), peft_tensors_free(both), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(refusing) {
  peft_context *context = open_context(1);
  peft_tensors *batch = make_batch(context);
  peft_model *model = open_with_two(context, batch, loha);
  const float not_a_number[] = {1, NAN};
  int64_t done = 0;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "weight", combine(model, "c", 2, not_a_number, NULL));
  FAILS(PEFT_ERROR_ARGUMENT, combine(model, "c", 0, NULL, NULL));
  FAILS(PEFT_ERROR_ARGUMENT, combine(model, "c", -1, NULL, NULL));
  FAILS(PEFT_ERROR_ARGUMENT, combine(model, NULL, 2, NULL, NULL));
  FAILS_NAMING(PEFT_ERROR_STATE, "'a'", combine(model, "a", 2, NULL, NULL));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "magic", combine(model, "c", 2, NULL, "{\"combination_type\": \"magic\"}"));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "desnity", combine(model, "c", 2, NULL, "{\"desnity\": 1}"));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "density", combine(model, "c", 2, NULL, "{\"combination_type\": \"ties_svd\", \"density\": 1.5}"));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "density", combine(model, "c", 2, NULL, "{\"combination_type\": \"ties_svd\", \"density\": 0}"));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "svd_rank", combine(model, "c", 2, NULL, "{\"svd_rank\": -3}"));
  FAILS_NAMING(PEFT_ERROR_UNSUPPORTED, "'b'", combine(model, "c", 2, NULL, "{\"combination_type\": \"linear\"}"));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_combine(NULL, 0, NULL, model, "c", (const char *[]){"nobody"}, NULL, 1, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_combine(NULL, 0, NULL, model, "c", NULL, NULL, 1, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_CANCELLED, peft_adapter_combine(NULL, 0, NULL, model, "c", ab, NULL, 2, NULL, stop_at_two, &done, &error));
  CHECK(done == 2);
  FAILS(PEFT_ERROR_HANDLE, peft_adapter_combine(NULL, 0, NULL, NULL, "c", ab, NULL, 2, NULL, NULL, NULL, &error));
  CHECK(peft_adapter_config(NULL, 0, NULL, model, "c", &error) == PEFT_ERROR_NOT_FOUND);
  /* A report that does not fit is lost, the adapter is not. */
  char small[4] = "abc";
  OK(peft_adapter_combine(small, sizeof small, &needed, model, "c", ab, NULL, 2, NULL, NULL, NULL, &error));
  CHECK(needed > sizeof small && strcmp(small, "abc") == 0);
  OK(peft_adapter_config(NULL, 0, NULL, model, "c", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "residue", peft_model_merge(NULL, 0, NULL, model, NULL, 0, "{\"svd_rank\": 4}", &error));
  FAILS(PEFT_ERROR_STATE, peft_model_merge(NULL, 0, NULL, model, NULL, 0, "{\"residue\": \"a\"}", &error));
  peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(in_files) {
  const char *const a = SCRATCH("a"), *const b = SCRATCH("b.h5"), *out = SCRATCH("out");
  const float minus[] = {1, -1};
  peft_context *context = open_context(1);
  peft_tensors *batch = make_batch(context), *base, *made;
  peft_model *model = open_with_two(context, batch, lora);
  const char *const paths[] = {a, b}, *const same[] = {a, a};
  OK(peft_adapter_save(model, "a", a, &error));
  OK(peft_adapter_save(model, "b", b, &error));
  OK(peft_adapter_combine_files(report, sizeof report, &needed, context, out, same, minus, 2, "{\"combination_type\": \"cat\"}", NULL, NULL, &error));
  OK(peft_adapter_load(model, "nothing", out, 0, &error));
  OK(peft_adapter_set_enabled(model, 0, &error));
  base = run_forward(model, batch);
  OK(peft_adapter_set_enabled(model, 1, &error));
  OK(peft_adapter_set_active(model, (const char *[]){"nothing"}, NULL, 1, &error));
  made = run_forward(model, batch);
  CHECK(difference(base, made, "logits") < 1e-3); /* a − a */
  OK(peft_adapter_compare_files(report, sizeof report, &needed, context, a, a, &error));
  CHECK(has(report, "\"only_a\": []") && (has(report, "\"cosine\": 1.0") || has(report, "\"cosine\": 0.99999")));
  OK(peft_adapter_compare_files(report, sizeof report, &needed, context, a, b, &error));
  out = SCRATCH("resized");
  OK(peft_adapter_combine_files(report, sizeof report, &needed, context, out, paths, NULL, 1, "{\"svd_rank\": 2}", NULL, NULL, &error));
  CHECK(has(report, "\"rank\": 2"));
  out = SCRATCH("never");
  const char *const missing[] = {a, "nowhere"};
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_combine_files(NULL, 0, NULL, context, out, missing, NULL, 2, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_combine_files(NULL, 0, NULL, context, out, paths, NULL, 0, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_combine_files(NULL, 0, NULL, context, NULL, paths, NULL, 2, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_HANDLE, peft_adapter_combine_files(NULL, 0, NULL, NULL, out, paths, NULL, 2, NULL, NULL, NULL, &error));
  int64_t done = 0;
  FAILS(PEFT_ERROR_CANCELLED, peft_adapter_combine_files(NULL, 0, NULL, context, out, paths, NULL, 2, NULL, stop_at_two, &done, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_load(model, "never", out, 0, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_compare_files(NULL, 0, NULL, context, a, "nowhere", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_compare_files(NULL, 0, NULL, context, a, NULL, &error));
  peft_tensors_free(made), peft_tensors_free(base), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(extracting) {
  peft_context *context = open_context(1);
  peft_tensors *batch = make_batch(context), *wanted, *made;
  peft_model *base = open_model(context), *tuned = open_with_two(context, batch, lora);
  OK(peft_model_merge_and_unload(tuned, &error));
  wanted = run_forward(tuned, batch);
  OK(peft_adapter_extract(report, sizeof report, &needed, base, "x", tuned, "{\"svd_rank\": 4}", NULL, NULL, &error));
  CHECK(has(report, "\"left_out\": []") && has(report, "self_attn.v_proj"));
  made = run_forward(base, batch); /* the first adapter is active */
  CHECK(difference(wanted, made, "logits") < 1e-2);
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_extract(NULL, 0, NULL, base, "y", base, "{\"svd_rank\": 4}", NULL, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "svd_rank", peft_adapter_extract(NULL, 0, NULL, base, "y", tuned, NULL, NULL, NULL, &error));
  FAILS(PEFT_ERROR_STATE, peft_adapter_extract(NULL, 0, NULL, base, "x", tuned, "{\"svd_rank\": 4}", NULL, NULL, &error));
  FAILS(PEFT_ERROR_HANDLE, peft_adapter_extract(NULL, 0, NULL, base, "y", NULL, "{\"svd_rank\": 4}", NULL, NULL, &error));
  CHECK(peft_adapter_extract(NULL, 0, NULL, base, "y", tuned, "{\"svd_rank\": 4, \"target_modules\": [\"nothing\"]}", NULL, NULL, &error) < 0);
  peft_tensors_free(made), peft_tensors_free(wanted), peft_tensors_free(batch), peft_model_free(base), peft_model_free(tuned), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(combining);
  RUN(across_methods);
  RUN(refusing);
  RUN(in_files);
  RUN(extracting);
  return finish();
}
