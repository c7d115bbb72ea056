/* Models: opening, describing, forward passes, gradients, export. */
#include "fixtures.h"

TEST(opening) {
  peft_context *context = open_context(1);
  peft_model *model = NULL;
  peft_model_options options;
  memset(&options, 0xff, sizeof options);
  peft_model_options_init(&options);
  peft_model_options_init(NULL);
  CHECK(options.struct_size == sizeof options && options.compute == PEFT_COMPUTE_AUTO && options.options_json == NULL && options.progress == NULL);
  for (options.compute = PEFT_COMPUTE_AUTO; options.compute <= PEFT_COMPUTE_INT8; options.compute++) {
    OK(peft_model_open(&model, context, model_folder, &options, &error));
    peft_model_free(model);
  }
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "compute is 4", peft_model_open(&model, context, model_folder, &options, &error));
  CHECK(model == NULL);
  options.compute = 0;
  options.options_json = "{\"quantization\": {\"scheme\": \"nf4\"}}";
  OK(peft_model_open(&model, context, model_folder, &options, &error));
  peft_model_free(model);
  options.options_json = "{\"quantization\": {\"scheme\": \"nf3\"}}";
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "nf3", peft_model_open(&model, context, model_folder, &options, &error));
  options.options_json = "{\"quantisation\": {}}";
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "quantisation", peft_model_open(&model, context, model_folder, &options, &error));
  options.options_json = "{\"quantization\": null}";
  OK(peft_model_open(&model, context, model_folder, &options, &error));
  peft_model_free(model);
  options.struct_size = 3;
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_open(&model, context, model_folder, &options, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_open(&model, context, NULL, NULL, &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_model_open(&model, context, SCRATCH("nowhere"), NULL, &error));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "config.json", peft_model_open(&model, context, scratch_folder, NULL, &error));
  FAILS(PEFT_ERROR_FORMAT, peft_model_open(&model, context, MODEL_FILE("config.json"), NULL, &error));
  FAILS(PEFT_ERROR_FORMAT, peft_model_open_memory(&model, context, "GGUF\3\0\0\0", 8, NULL, &error));
  FAILS(PEFT_ERROR_FORMAT, peft_model_open_memory(&model, context, "", 0, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_open_memory(&model, context, NULL, 100, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_open_memory(&model, context, "x", SIZE_MAX, NULL, &error));
  CHECK(model == NULL);
  peft_context_free(context);
}

static int32_t count_and_cancel(void *user_data, int64_t done, int64_t total) {
  int *calls = user_data;
  return done > total || ++*calls > 1000 || *calls == -4;
}

TEST(progress_is_told_and_can_cancel) {
  peft_context *context = open_context(1);
  peft_model *model = NULL;
  int calls = 0;
  peft_model_options options = PEFT_MODEL_OPTIONS_INIT;
  options.progress = count_and_cancel;
  options.user_data = &calls;
  OK(peft_model_open(&model, context, model_folder, &options, &error));
  CHECK(calls >= 1);
  peft_model_free(model);
  calls = -5; /* the first call cancels */
  FAILS(PEFT_ERROR_CANCELLED, peft_model_open(&model, context, model_folder, &options, &error));
  CHECK(model == NULL);
  peft_context_free(context);
}

TEST(describing) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  size_t needed;
  OK(peft_model_describe(NULL, 0, &needed, model, &error));
  char *text = malloc(needed + 1);
  OK(peft_model_describe(text, needed + 1, &needed, model, &error));
  CHECK(has(text, "\"architecture\": \"llama\"") && has(text, "\"hidden_size\": 32") && has(text, "\"model.layers.0.self_attn.q_proj\"") && has(text, "\"unused\": []"));
  free(text);
  peft_tensors *state = NULL;
  OK(peft_model_state(&state, model, NULL, &error));
  CHECK(peft_tensors_count(state) == 21);
  peft_tensors_free(state);
  OK(peft_model_state(&state, model, "model.norm.weight", &error));
  int64_t count;
  CHECK(peft_tensors_count(state) == 1 && floats(state, "model.norm.weight", &count) && count == 32);
  peft_tensors_free(state);
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "model.nrom", peft_model_state(&state, model, "model.nrom.weight", &error));
  CHECK(state == NULL);
  peft_model_free(model), peft_context_free(context);
}

TEST(forward) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *outputs = run_forward(model, batch);
  peft_array logits = PEFT_ARRAY_INIT;
  OK(peft_tensors_get(&logits, outputs, "logits", &error));
  CHECK(logits.rank == 3 && logits.shape[0] == 2 && logits.shape[1] == 5 && logits.shape[2] == 96);
  int64_t count;
  const float *loss = floats(outputs, "loss", &count);
  CHECK(loss && count == 1 && *loss > 0 && *loss < 20);
  CHECK(peft_tensors_count(outputs) == 2);
  peft_tensors *both = NULL;
  OK(peft_model_forward(&both, model, batch, "{\"outputs\": [\"logits\", \"last_hidden_state\"]}", &error));
  peft_array hidden = PEFT_ARRAY_INIT;
  OK(peft_tensors_get(&hidden, both, "last_hidden_state", &error));
  CHECK(hidden.rank == 3 && hidden.shape[2] == 32 && difference(outputs, both, "logits") == 0);
  peft_tensors_free(both), peft_tensors_free(outputs), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

/* The same two tokens with padding in front and behind. */
TEST(padding) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch, *outputs;
  OK(peft_tensors_create(&batch, context, &error));
  const int32_t ids[6] = {0, 7, 9, 7, 9, 0}, mask[6] = {0, 1, 1, 1, 1, 0}, places[6] = {0, 0, 1, 0, 1, 2};
  OK(peft_tensors_set(batch, "input_ids", PEFT_I32, 2, (int64_t[]){2, 3}, ids, &error));
  OK(peft_tensors_set(batch, "attention_mask", PEFT_I32, 2, (int64_t[]){2, 3}, mask, &error));
  OK(peft_tensors_set(batch, "position_ids", PEFT_I32, 2, (int64_t[]){2, 3}, places, &error));
  outputs = run_forward(model, batch);
  int64_t count;
  const float *logits = floats(outputs, "logits", &count);
  for (int i = 0; logits && i < 96; i++) CHECK(fabsf(logits[2 * 96 + i] - logits[4 * 96 + i]) < 1e-4f);
  peft_tensors_free(outputs), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

/* A batch with one array, or one array more, that is wrong. */
static int32_t forward_with(const peft_model *model, const peft_context *context, const char *name, int32_t type, int64_t rows, int64_t length, int64_t value) {
  peft_tensors *batch = make_batch(context), *outputs = NULL;
  int64_t data[64];
  for (int i = 0; i < 64; i++) data[i] = value;
  OK(peft_tensors_set(batch, name, type, 2, (int64_t[]){rows, length}, data, &error));
  int32_t code = peft_model_forward(&outputs, model, batch, NULL, &error);
  CHECK((outputs != NULL) == (code == PEFT_OK));
  peft_tensors_free(outputs), peft_tensors_free(batch);
  return code;
}

TEST(wrong_inputs_are_named) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *empty, *outputs = NULL;
  OK(peft_tensors_create(&empty, context, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "input_ids", peft_model_forward(&outputs, model, empty, NULL, &error));
  peft_tensors_free(empty);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "96", forward_with(model, context, "input_ids", PEFT_I64, 2, 5, 96));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "-1", forward_with(model, context, "input_ids", PEFT_I64, 2, 5, -1));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "input_ids", forward_with(model, context, "input_ids", PEFT_I64, 2, 5, INT64_MAX));
  FAILS(PEFT_ERROR_ARGUMENT, forward_with(model, context, "input_ids", PEFT_I64, 0, 5, 1));
  FAILS(PEFT_ERROR_ARGUMENT, forward_with(model, context, "input_ids", PEFT_F32, 2, 5, 1));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "label 96", forward_with(model, context, "labels", PEFT_I64, 2, 5, 96));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "labels", forward_with(model, context, "labels", PEFT_I64, 2, 4, 1));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "attention_mask", forward_with(model, context, "attention_mask", PEFT_I64, 5, 2, 1));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "attention_mask", forward_with(model, context, "attention_mask", PEFT_I64, 2, 5, 2));
  CHECK(forward_with(model, context, "position_ids", PEFT_I64, 2, 5, -1) == PEFT_ERROR_ARGUMENT);
  CHECK(forward_with(model, context, "position_ids", PEFT_I64, 2, 5, 1 << 21) == PEFT_ERROR_ARGUMENT);
  CHECK(forward_with(model, context, "first_key", PEFT_I64, 2, 5, -1) == PEFT_ERROR_ARGUMENT);
  CHECK(forward_with(model, context, "first_key", PEFT_I64, 2, 5, 9) == PEFT_ERROR_ARGUMENT);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "token_type_ids", forward_with(model, context, "token_type_ids", PEFT_I64, 2, 5, 0));
  FAILS(PEFT_ERROR_ARGUMENT, forward_with(model, context, "x", PEFT_F32, 2, 5, 0));
  peft_tensors *batch = make_batch(context);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "attentions", peft_model_forward(&outputs, model, batch, "{\"outputs\": [\"attentions\"]}", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_forward(&outputs, model, batch, "{\"adapter_names\": [\"a\"]}", &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_model_forward(&outputs, model, batch, "{\"adapter_names\": [\"a\", \"b\"]}", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_forward(&outputs, model, batch, "not json", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_forward(&outputs, model, batch, "{\"output\": []}", &error));
  CHECK(outputs == NULL);
  /* Longer than the model was made for: 64. */
  int64_t long_row[65];
  for (int i = 0; i < 65; i++) long_row[i] = 5;
  peft_tensors *too_long;
  OK(peft_tensors_create(&too_long, context, &error));
  OK(peft_tensors_set(too_long, "input_ids", PEFT_I64, 2, (int64_t[]){1, 65}, long_row, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "64", peft_model_forward(&outputs, model, too_long, NULL, &error));
  peft_tensors_free(too_long), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(gradients) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context), *gradients = NULL, *parameters = NULL;
  double loss = 5;
  FAILS(PEFT_ERROR_STATE, peft_model_gradients(&gradients, &loss, model, batch, NULL, &error));
  CHECK(gradients == NULL && loss == 0);
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  OK(peft_model_gradients(&gradients, &loss, model, batch, NULL, &error));
  OK(peft_adapter_parameters(&parameters, model, &error));
  CHECK(loss > 0 && peft_tensors_count(gradients) == 8 && peft_tensors_count(parameters) == 8);
  for (int64_t i = 0; i < 8; i++) CHECK(strcmp(peft_tensors_name(gradients, i), peft_tensors_name(parameters, i)) == 0);
  int64_t count;
  CHECK(floats(gradients, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", &count) && count == 32 * 4);
  peft_tensors_free(gradients);
  OK(peft_model_gradients(&gradients, NULL, model, batch, "{}", &error)); /* the loss is not wanted */
  peft_tensors_free(gradients), peft_tensors_free(parameters), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(training_mode_has_dropout) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context);
  OK(peft_adapter_add(model, "a", "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_dropout\": 0.5, \"target_modules\": [\"q_proj\"]}", NULL, &error));
  train_a_little(model, batch, 3);
  peft_tensors *a = run_forward(model, batch), *b = run_forward(model, batch);
  CHECK(difference(a, b, "logits") == 0);
  peft_tensors_free(a), peft_tensors_free(b);
  OK(peft_model_set_training(model, 1, &error));
  a = run_forward(model, batch), b = run_forward(model, batch);
  CHECK(difference(a, b, "logits") > 0);
  peft_tensors_free(a);
  OK(peft_model_set_training(model, 0, &error));
  a = run_forward(model, batch);
  CHECK(difference(a, b, "logits") > 0);
  peft_tensors_free(a), peft_tensors_free(b), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(exporting) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context), *again = NULL;
  peft_tensors *batch = make_batch(context), *before = run_forward(model, batch);
  OK(peft_model_export(model, SCRATCH("exported"), NULL, &error));
  OK(peft_model_open(&again, context, SCRATCH("exported"), &(peft_model_options){sizeof(peft_model_options), PEFT_COMPUTE_F32, NULL, NULL, NULL}, &error));
  peft_tensors *after = run_forward(again, batch);
  CHECK(difference(before, after, "logits") == 0);
  peft_tokenizer *tokenizer = NULL;
  OK(peft_model_tokenizer(&tokenizer, again, &error));
  OK(peft_model_export(model, SCRATCH("exported16"), "{\"dtype\": \"bfloat16\"}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "int4", peft_model_export(model, SCRATCH("exported4"), "{\"dtype\": \"int4\"}", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_export(model, NULL, NULL, &error));
  FAILS(PEFT_ERROR_IO, peft_model_export(model, SCRATCH("exported/config.json/below"), NULL, &error));
  peft_tokenizer_free(tokenizer), peft_tensors_free(before), peft_tensors_free(after), peft_tensors_free(batch);
  peft_model_free(model), peft_model_free(again), peft_context_free(context);
}

/* Frees in any order: what a child needs of its parent lives on. */
TEST(parents_may_go_first) {
  peft_context *context = open_context(2);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context);
  peft_session *session = NULL;
  OK(peft_session_create(&session, model, NULL, &error));
  peft_context_free(context);
  peft_tensors *outputs = run_forward(model, batch);
  peft_model_free(model);
  FAILS(PEFT_ERROR_HANDLE, peft_model_set_training(model, 1, &error));
  OK(peft_session_append(session, (int32_t[]){1, 7, 9}, 3, &error));
  CHECK(peft_session_generate(session, 3, NULL, NULL, &error) >= 0);
  int64_t count;
  CHECK(floats(outputs, "logits", &count) && count == 2 * 5 * 96);
  peft_session_free(session), peft_tensors_free(outputs), peft_tensors_free(batch);
  peft_session_free(session), peft_model_free(model), peft_context_free(context); /* twice: nothing happens */
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(opening);
  RUN(progress_is_told_and_can_cancel);
  RUN(describing);
  RUN(forward);
  RUN(padding);
  RUN(wrong_inputs_are_named);
  RUN(gradients);
  RUN(training_mode_has_dropout);
  RUN(exporting);
  RUN(parents_may_go_first);
  return finish();
}
