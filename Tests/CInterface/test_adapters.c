/* Adapters of a model: making, files, choosing, values, merging. */
#include "fixtures.h"

static const char q_lora_B[] = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

TEST(adding) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  char text[8192];
  size_t needed;
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_STATE, "'a'", peft_adapter_add(model, "a", lora, NULL, &error));
  OK(peft_adapter_add(model, "b", lora, "{\"seed\": 7, \"trainable\": false}", &error));
  OK(peft_adapter_status(text, sizeof text, &needed, model, &error));
  CHECK(has(text, "\"active\": [{\"name\": \"a\", \"weight\": 1.0}]") && has(text, "\"enabled\": true") && has(text, "\"merge_report\": null"));
  CHECK(has(text, "\"model.layers.1.self_attn.v_proj\"") && has(text, "\"peft_type\": \"LORA\"") && has(text, "\"trainable\": false"));
  OK(peft_adapter_config(text, sizeof text, &needed, model, "a", &error));
  CHECK(has(text, "\"r\": 4") && has(text, "\"lora_alpha\": 8") && has(text, "\"peft_type\": \"LORA\""));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_add(model, NULL, lora, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_add(model, "", lora, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_add(model, "__base__", lora, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_add(model, "c", NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_add(model, "c", "[]", NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_add(model, "c", "{\"peft_type\": \"LORA\"", NULL, &error));
  FAILS_NAMING(PEFT_ERROR_UNSUPPORTED, "MAGIC", peft_adapter_add(model, "c", "{\"peft_type\": \"MAGIC\"}", NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "r", peft_adapter_add(model, "c", "{\"peft_type\": \"LORA\", \"r\": 0, \"target_modules\": [\"q_proj\"]}", NULL, &error));
  CHECK(peft_adapter_add(model, "c", "{\"peft_type\": \"LORA\", \"target_modules\": [\"nothing_like_it\"]}", NULL, &error) < 0);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "sead", peft_adapter_add(model, "c", lora, "{\"sead\": 1}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "seed", peft_adapter_add(model, "c", lora, "{\"seed\": -1}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "trainable", peft_adapter_add(model, "c", lora, "{\"trainable\": \"yes\"}", &error));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "c", peft_adapter_config(text, sizeof text, &needed, model, "c", &error));
  CHECK(needed == 0);
  peft_model_free(model), peft_context_free(context);
}

TEST(starting_from_data) {
  static const char along_gradients[] =
      "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": [\"q_proj\"], \"init_lora_weights\": \"lora_ga\", \"lora_ga_config\": {\"stable_gamma\": 16}}";
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *base = run_forward(model, batch), *again, *none;
  const peft_tensors *batches[2] = {batch, batch};
  OK(peft_tensors_create(&none, context, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "calibration", peft_adapter_add(model, "a", along_gradients, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "batch_count", peft_adapter_add_calibrated(model, "a", along_gradients, NULL, batches, 0, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "batch_count", peft_adapter_add_calibrated(model, "a", along_gradients, NULL, NULL, 1, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "lora_ga", peft_adapter_add_calibrated(model, "a", lora, NULL, batches, 2, &error));
  CHECK(peft_adapter_add_calibrated(model, "a", along_gradients, NULL, (const peft_tensors *[]){none}, 1, &error) < 0);
  CHECK(peft_adapter_add_calibrated(model, "a", along_gradients, NULL, (const peft_tensors *[]){NULL}, 1, &error) < 0);
  OK(peft_adapter_add_calibrated(model, "a", along_gradients, NULL, batches, 2, &error));
  again = run_forward(model, batch); /* what the adapter adds was taken out of the weights */
  CHECK(difference(base, again, "logits") < 1e-3);
  peft_tensors_free(again);
  OK(peft_adapter_set_enabled(model, 0, &error)); /* and is not nothing */
  again = run_forward(model, batch);
  CHECK(difference(base, again, "logits") > 1e-2);
  OK(peft_adapter_set_enabled(model, 1, &error));
  train_a_little(model, batch, 3);
  peft_tensors_free(again), peft_tensors_free(none), peft_tensors_free(base), peft_tensors_free(batch);
  peft_model_free(model), peft_context_free(context);
}

TEST(choosing) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *base = run_forward(model, batch), *a, *again;
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 3);
  a = run_forward(model, batch);
  CHECK(difference(base, a, "logits") > 0.01);

  OK(peft_adapter_set_enabled(model, 0, &error));
  again = run_forward(model, batch);
  CHECK(difference(base, again, "logits") == 0);
  peft_tensors_free(again);
  OK(peft_adapter_set_enabled(model, 1, &error));
  OK(peft_adapter_set_active(model, NULL, NULL, 0, &error));
  again = run_forward(model, batch);
  CHECK(difference(base, again, "logits") == 0);
  peft_tensors_free(again);
  const char *names[2] = {"a", "b"};
  OK(peft_adapter_set_active(model, names, (float[]){0}, 1, &error));
  again = run_forward(model, batch);
  CHECK(difference(base, again, "logits") < 1e-3);
  peft_tensors_free(again);
  OK(peft_adapter_set_active(model, names, NULL, 1, &error));
  OK(peft_adapter_set_scale(model, "a", 0, &error));
  again = run_forward(model, batch);
  CHECK(difference(base, again, "logits") < 1e-3);
  peft_tensors_free(again);
  OK(peft_adapter_set_scale(model, "a", 1, &error));
  again = run_forward(model, batch);
  CHECK(difference(a, again, "logits") == 0);
  peft_tensors_free(again);

  /* Rows of one batch with and without. */
  OK(peft_model_forward(&again, model, batch, "{\"adapter_names\": [\"a\", \"__base__\"]}", &error));
  int64_t count;
  const float *mixed = floats(again, "logits", &count), *with = floats(a, "logits", &count), *without = floats(base, "logits", &count);
  for (int i = 0; mixed && with && without && i < 5 * 96; i++) {
    CHECK(fabsf(mixed[i] - with[i]) < 1e-4f);
    CHECK(fabsf(mixed[5 * 96 + i] - without[5 * 96 + i]) < 1e-4f);
  }
  peft_tensors_free(again);

  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "b", peft_adapter_set_active(model, names, NULL, 2, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_active(model, NULL, NULL, 1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_active(model, names, NULL, -1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_active(model, names, NULL, INT64_MAX, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_active(model, (const char *[]){"a", NULL}, NULL, 2, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_active(model, (const char *[]){"a", "a"}, NULL, 2, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_active(model, names, (float[]){NAN}, 1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_scale(model, "a", INFINITY, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_set_scale(model, "b", 1, &error));
  again = run_forward(model, batch); /* nothing of this changed anything */
  CHECK(difference(a, again, "logits") == 0);
  peft_tensors_free(again), peft_tensors_free(a), peft_tensors_free(base), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(removing_and_renaming) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  char text[256];
  size_t needed;
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  OK(peft_adapter_add(model, "b", lora, NULL, &error));
  FAILS(PEFT_ERROR_STATE, peft_adapter_rename(model, "a", "b", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_rename(model, "a", NULL, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_rename(model, "c", "d", &error));
  OK(peft_adapter_rename(model, "a", "c", &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_remove(model, "a", &error));
  OK(peft_adapter_remove(model, "c", &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_config(text, sizeof text, &needed, model, "c", &error));
  OK(peft_adapter_set_trainable(model, "b", 0, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_set_trainable(model, "c", 0, &error));
  peft_model_free(model), peft_context_free(context);
}

TEST(values) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *state = NULL, *changed;
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  OK(peft_adapter_state(&state, model, "a", &error));
  CHECK(peft_tensors_count(state) == 8);
  int64_t count;
  const float *B = floats(state, q_lora_B, &count);
  CHECK(B && count == 128 && B[0] == 0);
  /* A copy: training does not change it. */
  train_a_little(model, batch, 1);
  CHECK(B && B[0] == 0);
  peft_tensors *now = NULL;
  OK(peft_adapter_state(&now, model, "a", &error));
  CHECK(difference(state, now, q_lora_B) > 0);
  peft_tensors_free(now);
  /* Back to the start. */
  OK(peft_adapter_set_state(model, "a", state, &error));
  OK(peft_adapter_state(&now, model, "a", &error));
  CHECK(difference(state, now, q_lora_B) == 0);
  peft_tensors_free(now);
  /* All or nothing: one good tensor and one that is not the adapter's. */
  OK(peft_tensors_create(&changed, context, &error));
  float ones[128];
  for (int i = 0; i < 128; i++) ones[i] = 1;
  OK(peft_tensors_set(changed, q_lora_B, PEFT_F32, 2, (int64_t[]){32, 4}, ones, &error));
  OK(peft_tensors_set(changed, "stranger", PEFT_F32, 1, (int64_t[]){4}, ones, &error));
  FAILS_NAMING(PEFT_ERROR_MISMATCH, "stranger", peft_adapter_set_state(model, "a", changed, &error));
  peft_tensors_free(changed);
  OK(peft_tensors_create(&changed, context, &error));
  OK(peft_tensors_set(changed, q_lora_B, PEFT_F32, 2, (int64_t[]){4, 32}, ones, &error));
  FAILS_NAMING(PEFT_ERROR_MISMATCH, "lora_B", peft_adapter_set_state(model, "a", changed, &error));
  OK(peft_adapter_state(&now, model, "a", &error));
  CHECK(difference(state, now, q_lora_B) == 0);
  peft_tensors_free(now);
  OK(peft_tensors_set(changed, q_lora_B, PEFT_F32, 2, (int64_t[]){32, 4}, ones, &error));
  OK(peft_adapter_set_state(model, "a", changed, &error));
  OK(peft_adapter_state(&now, model, "a", &error));
  CHECK(difference(changed, now, q_lora_B) == 0);
  peft_tensors_free(now), peft_tensors_free(changed), peft_tensors_free(state), peft_tensors_free(batch);
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_state(&now, model, "b", &error));
  CHECK(now == NULL);
  peft_model_free(model), peft_context_free(context);
}

TEST(files) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context), *other = open_model(context);
  peft_tensors *batch = make_batch(context), *before, *after;
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 3);
  before = run_forward(model, batch);
  OK(peft_adapter_save(model, "a", SCRATCH("adapter"), &error));
  OK(peft_adapter_save(model, "a", SCRATCH("adapter.h5"), &error));
  OK(peft_adapter_load(other, "folder", SCRATCH("adapter"), 0, &error));
  after = run_forward(other, batch);
  CHECK(difference(before, after, "logits") == 0);
  peft_tensors_free(after);
  OK(peft_adapter_remove(other, "folder", &error));
  OK(peft_adapter_load(other, "file", SCRATCH("adapter.h5"), 1, &error));
  after = run_forward(other, batch);
  CHECK(difference(before, after, "logits") == 0);
  peft_tensors_free(after);
  FAILS_NAMING(PEFT_ERROR_STATE, "file", peft_adapter_load(other, "file", SCRATCH("adapter"), 1, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_load(other, "b", SCRATCH("nowhere"), 1, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_load(other, "b", model_folder, 1, &error));
  FAILS_NAMING(PEFT_ERROR_MISMATCH, "lm_head.weight", peft_adapter_load(other, "b", MODEL_FILE("model.safetensors"), 1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_load(other, "b", NULL, 1, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_save(model, "b", SCRATCH("b"), &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_save(model, "a", NULL, &error));
  FAILS(PEFT_ERROR_IO, peft_adapter_save(model, "a", SCRATCH("adapter.h5/below"), &error));
  FAILS(PEFT_ERROR_IO, peft_adapter_save(model, "a", SCRATCH("adapter.h5/below.h5"), &error));
  peft_tensors_free(before), peft_tensors_free(batch), peft_model_free(model), peft_model_free(other), peft_context_free(context);
}

TEST(files_of_others) {
  static const char *const formats[] = {"{\"format\": \"kohya\", \"prefix\": \"lora_te_\"}", "{\"format\": \"diffusers\"}"};
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *before, *after;
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 3);
  before = run_forward(model, batch);
  for (int i = 0; i < 2; i++) {
    peft_model *other = open_model(context);
    OK(peft_adapter_save_as(model, "a", SCRATCH("a.safetensors"), formats[i], &error));
    OK(peft_adapter_load(other, "a", SCRATCH("a.safetensors"), 0, &error));
    after = run_forward(other, batch);
    CHECK(difference(before, after, "logits") == 0);
    peft_tensors_free(after), peft_model_free(other);
  }
  OK(peft_adapter_save_as(model, "a", SCRATCH("plain"), NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "formt", peft_adapter_save_as(model, "a", SCRATCH("b"), "{\"formt\": \"kohya\"}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "'zip'", peft_adapter_save_as(model, "a", SCRATCH("b"), "{\"format\": \"zip\"}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "'te_'", peft_adapter_save_as(model, "a", SCRATCH("b"), "{\"format\": \"kohya\", \"prefix\": \"te_\"}", &error));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "'b'", peft_adapter_save_as(model, "b", SCRATCH("b"), formats[0], &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_save_as(model, "a", SCRATCH("b"), "{\"initial\": \"nowhere\"}", &error));
  peft_tensors_free(before), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(merging) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *base = run_forward(model, batch), *adapted, *merged;
  char report[4096], status[8192];
  size_t needed;
  FAILS(PEFT_ERROR_STATE, peft_model_unmerge(model, &error));
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 3);
  adapted = run_forward(model, batch);
  OK(peft_model_merge(report, sizeof report, &needed, model, NULL, 0, "{\"safe\": true}", &error));
  CHECK(needed == strlen(report) && has(report, "\"kept\"") && has(report, "model.layers.0.self_attn.q_proj"));
  OK(peft_adapter_status(status, sizeof status, &needed, model, &error));
  CHECK(has(status, "\"merged\": [\"a\"]") && has(status, "\"merge_report\": {"));
  merged = run_forward(model, batch);
  CHECK(difference(adapted, merged, "logits") / difference(base, adapted, "logits") < 1e-3);
  peft_tensors_free(merged);
  OK(peft_model_merge(NULL, 0, NULL, model, (const char *[]){"a"}, 1, NULL, &error)); /* merged already: it stays so */
  OK(peft_model_unmerge(model, &error));
  merged = run_forward(model, batch);
  CHECK(difference(adapted, merged, "logits") == 0);
  peft_tensors_free(merged);
  FAILS(PEFT_ERROR_STATE, peft_model_unmerge(model, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_model_merge(NULL, 0, NULL, model, (const char *[]){"b"}, 1, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "save", peft_model_merge(NULL, 0, NULL, model, NULL, 0, "{\"save\": true}", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_merge(NULL, 0, NULL, model, NULL, -1, NULL, &error));
  OK(peft_model_merge(NULL, 0, NULL, model, NULL, 0, NULL, &error));
  OK(peft_model_unmerge(model, &error));
  OK(peft_model_merge_and_unload(model, &error));
  merged = run_forward(model, batch);
  CHECK(difference(adapted, merged, "logits") / difference(base, adapted, "logits") < 1e-3);
  OK(peft_adapter_status(status, sizeof status, &needed, model, &error));
  CHECK(has(status, "\"adapters\": {}") && has(status, "\"merged\": []"));
  peft_tensors_free(merged), peft_tensors_free(adapted), peft_tensors_free(base), peft_tensors_free(batch);
  peft_model_free(model), peft_context_free(context);
}

/* What stands in front of the input, or of attention's keys. */
TEST(in_front) {
  static const char prefix[] = "{\"peft_type\": \"PREFIX_TUNING\", \"num_virtual_tokens\": 3}";
  static const char tasks[] = "{\"peft_type\": \"MULTITASK_PROMPT_TUNING\", \"num_virtual_tokens\": 2, \"num_tasks\": 2}";
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *base = run_forward(model, batch), *before, *after, *out = NULL;
  OK(peft_adapter_add(model, "p", prefix, NULL, &error));
  before = run_forward(model, batch);
  CHECK(difference(base, before, "logits") > 0);
  OK(peft_adapter_fill(model, "p", "iron and fire", &error));
  after = run_forward(model, batch);
  CHECK(difference(before, after, "logits") > 0);
  peft_tensors_free(before), peft_tensors_free(after);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "3", peft_adapter_fill(model, "p", "", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_fill(model, "p", NULL, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_adapter_fill(model, "q", "iron and fire", &error));
  FAILS(PEFT_ERROR_HANDLE, peft_adapter_fill(NULL, "p", "iron and fire", &error));
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_UNSUPPORTED, "LORA", peft_adapter_fill(model, "a", "iron and fire", &error));
  FAILS_NAMING(PEFT_ERROR_UNSUPPORTED, "PREFIX_TUNING", peft_model_merge(NULL, 0, NULL, model, NULL, 0, NULL, &error));
  /* LoRA and prefix together. */
  OK(peft_adapter_set_active(model, (const char *[]){"a", "p"}, NULL, 2, &error));
  train_a_little(model, batch, 2);
  /* Tasks: those there are, and one for each row. */
  OK(peft_adapter_add(model, "t", tasks, NULL, &error));
  OK(peft_adapter_set_active(model, (const char *[]){"t"}, NULL, 1, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "task_ids", peft_model_forward(&out, model, batch, NULL, &error));
  peft_session *session;
  OK(peft_session_create(&session, model, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "task", peft_session_append_text(session, "iron", SIZE_MAX, 0, &error));
  peft_session_free(session);
  OK(peft_session_create(&session, model, "{\"task_id\": 1}", &error));
  OK(peft_session_append_text(session, "iron", SIZE_MAX, 0, &error));
  peft_session_free(session);
  OK(peft_session_create(&session, model, "{\"task_id\": 2}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "0 to 1", peft_session_append_text(session, "iron", SIZE_MAX, 0, &error));
  peft_session_free(session);
  /* Each row another adapter, all of which learn. */
  peft_trainer *trainer;
  peft_step step = PEFT_STEP_INIT;
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_create(&trainer, model, "{\"adapter\": \"a\", \"adapters\": [\"a\"]}", &error));
  OK(peft_trainer_create(&trainer, model, "{\"adapters\": [\"a\", \"p\"], \"lr_scheduler\": \"constant\"}", &error));
  OK(peft_trainer_step_rows(&step, trainer, batch, (const char *[]){"a", "p"}, 2, &error));
  CHECK(step.updated == 1 && step.loss > 0);
  OK(peft_trainer_step_rows(&step, trainer, batch, (const char *[]){"__base__", "p"}, 2, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "adapter_names", peft_trainer_step_rows(&step, trainer, batch, (const char *[]){"a"}, 1, &error));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "nobody", peft_trainer_step_rows(&step, trainer, batch, (const char *[]){"a", "nobody"}, 2, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_step_rows(&step, trainer, batch, NULL, 2, &error));
  peft_trainer_free(trainer);
  peft_tensors_free(base), peft_tensors_free(batch);
  peft_model_free(model), peft_context_free(context);
}

TEST(composing) {
  static const char bottleneck[] = "{\"peft_type\": \"BOTTLENECK\", \"config\": \"double_seq_bn\", \"reduction_factor\": 4}";
  static const char fuse[] = "{\"type\": \"Fuse\", \"children\": [\"a\", \"b\"]}";
  static const char rows[] = "{\"type\": \"BatchSplit\", \"children\": [\"a\", {\"type\": \"Fuse\", \"children\": [\"a\", \"b\"]}], \"kwargs\": {\"batch_sizes\": 1}}";
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *fused, *again;
  peft_session *session;
  char text[8192];
  size_t needed;
  int64_t count;
  OK(peft_adapter_add(model, "a", bottleneck, NULL, &error));
  OK(peft_adapter_add(model, "b", bottleneck, "{\"seed\": 1}", &error));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "a,b", peft_adapter_set_composition(model, fuse, &error));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "nobody", peft_adapter_add(model, "x", "{\"peft_type\": \"ADAPTER_FUSION\", \"adapters\": [\"a\", \"nobody\"]}", NULL, &error));
  OK(peft_adapter_add(model, "a,b", "{\"peft_type\": \"ADAPTER_FUSION\", \"adapters\": [\"a\", \"b\"]}", NULL, &error));
  OK(peft_adapter_set_composition(model, fuse, &error));
  OK(peft_adapter_status(text, sizeof text, &needed, model, &error));
  CHECK(has(text, "\"composition\": {\"type\": \"Fuse\""));
  fused = run_forward(model, batch);
  train_a_little(model, batch, 3);
  again = run_forward(model, batch);
  CHECK(difference(fused, again, "logits") > 1e-3);
  peft_tensors_free(fused);
  /* The second row of a batch alike, the first by itself; a session of its own. */
  OK(peft_adapter_set_composition(model, rows, &error));
  fused = run_forward(model, batch);
  const float *both = floats(again, "logits", &count), *second = floats(fused, "logits", &count);
  for (int64_t i = count / 2; both && second && i < count; i++) CHECK(fabsf(both[i] - second[i]) < 1e-4f);
  peft_tensors_free(fused);
  OK(peft_adapter_set_composition(model, "{\"type\": \"Parallel\", \"children\": [\"a\", \"b\"]}", &error));
  fused = run_forward(model, batch);
  int64_t wider = 0;
  floats(fused, "logits", &wider);
  CHECK(wider == 2 * count);
  OK(peft_session_create(&session, model, "{\"adapters\": {\"type\": \"Fuse\", \"children\": [\"a\", \"b\"]}}", &error));
  OK(peft_session_append(session, (const int32_t[]){1, 2, 3}, 3, &error));
  OK(peft_session_describe(text, sizeof text, &needed, session, &error));
  CHECK(has(text, "\"composition\": {\"type\": \"Fuse\""));
  peft_session_free(session);
  CHECK(peft_session_create(&session, model, "{\"adapters\": {\"type\": \"Parallel\", \"children\": [\"a\", \"b\"]}}", &error) == PEFT_ERROR_UNSUPPORTED);

  static const char *const wrong[] = {"", "[]", "{}", "7", "[\"a\", \"a\"]", "{\"type\": \"Mix\", \"children\": [\"a\"]}", "{\"type\": \"Split\", \"children\": [\"a\"]}",
                                      "{\"type\": \"Average\", \"children\": [\"a\", \"b\"], \"kwargs\": {\"weights\": [1, 1e400]}}", "{\"type\": \"Stack\", \"children\": [[[[[[[[[[\"a\"]]]]]]]]]]}"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_composition(model, wrong[i], &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_adapter_set_composition(model, NULL, &error));
  FAILS(PEFT_ERROR_STATE, peft_adapter_remove(model, "a", &error));
  OK(peft_adapter_set_active(model, NULL, NULL, 0, &error));
  OK(peft_adapter_remove(model, "a", &error));
  peft_tensors_free(fused), peft_tensors_free(again), peft_tensors_free(batch);
  peft_model_free(model), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(in_front);
  RUN(adding);
  RUN(starting_from_data);
  RUN(choosing);
  RUN(composing);
  RUN(removing_and_renaming);
  RUN(values);
  RUN(files);
  RUN(files_of_others);
  RUN(merging);
  return finish();
}
