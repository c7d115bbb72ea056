/* Recordings and pictures through the C interface: what a host makes of them, training on them, what a session writes. */
#include "fixtures.h"

static peft_model *open_fixture(const peft_context *context, const char *name) {
  char path[1024];
  snprintf(path, sizeof path, "%s/../models/%s", model_folder, name);
  peft_model *model = NULL;
  OK(peft_model_open(&model, context, path, NULL, &error));
  return model;
}

TEST(pictures_become_pixel_values) {
  peft_context *context = open_context(2);
  peft_model *model = open_fixture(context, "dinov2");
  static uint8_t picture[30 * 50 * 3];
  for (size_t i = 0; i < sizeof picture; i++) picture[i] = 255;
  const int64_t shape[3] = {30, 50, 3}, flat[1] = {4500};
  peft_tensors *raw = NULL, *inputs = NULL, *outputs = NULL;
  OK(peft_tensors_create(&raw, context, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_preprocess(&inputs, model, raw, &error));
  OK(peft_tensors_set(raw, "a", PEFT_U8, 3, shape, picture, &error));
  OK(peft_model_preprocess(&inputs, model, raw, &error));
  int64_t count;
  const float *pixels = floats(inputs, "pixel_values", &count);
  CHECK(count == 3 * 20 * 20 && pixels && fabsf(pixels[0] - (1 - 0.485f) / 0.229f) < 1e-5f);
  OK(peft_model_forward(&outputs, model, inputs, NULL, &error));
  CHECK(floats(outputs, "logits", &count) && count == 3);
  OK(peft_tensors_set(raw, "a", PEFT_U8, 1, flat, picture, &error));
  peft_tensors *none = inputs;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "'a'", peft_model_preprocess(&none, model, raw, &error));
  CHECK(none == NULL);
  peft_tensors_free(raw), peft_tensors_free(inputs), peft_tensors_free(outputs), peft_model_free(model), peft_context_free(context);
}

/* Two tones, two texts: a LoRA learns which is which. */
TEST(a_model_learns_what_recordings_say) {
  peft_context *context = open_context(2);
  peft_model *model = open_fixture(context, "whisper");
  float samples[2][200];
  for (int i = 0; i < 200; i++) samples[0][i] = sinf(0.1f * (float)i), samples[1][i] = sinf(0.9f * (float)i);
  const int64_t length[1] = {200}, shape[2] = {2, 3}, labels[6] = {9, 17, 2, 21, 8, 2};
  peft_tensors *raw = NULL, *batch = NULL;
  OK(peft_tensors_create(&raw, context, &error));
  OK(peft_tensors_set(raw, "low", PEFT_F32, 1, length, samples[0], &error));
  OK(peft_tensors_set(raw, "high", PEFT_F32, 1, length, samples[1], &error));
  OK(peft_model_preprocess(&batch, model, raw, &error));
  OK(peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, labels, &error));
  OK(peft_adapter_add(model, "x", "{\"peft_type\": \"LORA\", \"r\": 8, \"target_modules\": \"all-linear\"}", NULL, &error));
  peft_trainer *trainer = NULL;
  OK(peft_trainer_create(&trainer, model, "{\"lr\": 1e-2, \"lr_scheduler\": \"constant\"}", &error));
  peft_step step = PEFT_STEP_INIT;
  for (int i = 0; i < 100; i++) OK(peft_trainer_step(&step, trainer, batch, &error));
  CHECK(step.loss < 1);
  for (int which = 0; which < 2; which++) {
    peft_tensors *one = NULL, *heard = NULL;
    peft_session *session = NULL;
    OK(peft_tensors_create(&one, context, &error));
    OK(peft_tensors_set(one, "a", PEFT_F32, 1, length, samples[which], &error));
    OK(peft_model_preprocess(&heard, model, one, &error));
    OK(peft_session_create(&session, model, NULL, &error));
    int32_t token = 0;
    FAILS(PEFT_ERROR_STATE, peft_session_next(&token, NULL, 0, NULL, session, &error));
    OK(peft_session_read_source(session, heard, &error));
    for (int i = 0; i < 2; i++) {
      OK(peft_session_next(&token, NULL, 0, NULL, session, &error));
      CHECK(token == labels[3 * which + i]);
    }
    CHECK(peft_session_next(&token, NULL, 0, NULL, session, &error) == PEFT_DONE);
    FAILS_NAMING(PEFT_ERROR_ARGUMENT, "one sample", peft_session_read_source(session, batch, &error));
    peft_session_free(session), peft_tensors_free(one), peft_tensors_free(heard);
  }
  peft_trainer_free(trainer), peft_tensors_free(raw), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

/* A language model's network under a classifier's head. */
TEST(a_new_head_is_random_and_named) {
  peft_context *context = open_context(1);
  peft_model_options options = PEFT_MODEL_OPTIONS_INIT;
  options.options_json = "{\"new_head\": {\"type\": \"ForTokenClassification\", \"num_labels\": 5}}";
  peft_model *model = NULL;
  OK(peft_model_open(&model, context, model_folder, &options, &error));
  static char text[1 << 16];
  size_t needed = 0;
  OK(peft_model_describe(text, sizeof text, &needed, model, &error));
  CHECK(strstr(text, "\"new\":[\"score\"]") != NULL || strstr(text, "\"new\": [\"score\"]") != NULL);
  peft_tensors *batch = make_batch(context), *outputs = NULL;
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "label", peft_model_forward(&outputs, model, batch, NULL, &error));
  peft_model_free(model);
  options.options_json = "{\"new_head\": {\"type\": \"ForDancing\"}}";
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "ForDancing", peft_model_open(&model, context, model_folder, &options, &error));
  peft_tensors_free(batch), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(pictures_become_pixel_values);
  RUN(a_model_learns_what_recordings_say);
  RUN(a_new_head_is_random_and_named);
  return finish();
}
