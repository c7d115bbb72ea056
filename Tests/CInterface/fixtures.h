/* What many tests need: an open model, a batch, an adapter. */
#ifndef FIXTURES_H
#define FIXTURES_H

#include "harness.h"

#include <math.h>

static const char lora[] = "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": [\"q_proj\", \"v_proj\"]}";

static inline peft_context *open_context(int32_t threads) {
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = threads;
  peft_context *context = NULL;
  OK(peft_context_create(&context, &options, &error));
  return context;
}

/* In f32, so that numbers may be compared. */
static inline peft_model *open_model(const peft_context *context) {
  peft_model_options options = PEFT_MODEL_OPTIONS_INIT;
  options.compute = PEFT_COMPUTE_F32;
  peft_model *model = NULL;
  OK(peft_model_open(&model, context, model_folder, &options, &error));
  return model;
}

/* Two rows of five tokens; labels are the tokens. */
static inline peft_tensors *make_batch(const peft_context *context) {
  static const int64_t ids[10] = {1, 7, 9, 11, 13, 1, 20, 22, 24, 26}, shape[2] = {2, 5};
  peft_tensors *batch = NULL;
  OK(peft_tensors_create(&batch, context, &error));
  OK(peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error));
  OK(peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error));
  return batch;
}

/* A named array as floats; NULL (and a failed check) when there is none. */
static inline const float *floats(const peft_tensors *tensors, const char *name, int64_t *count) {
  peft_array array = PEFT_ARRAY_INIT;
  *count = 0;
  if (!OK(peft_tensors_get(&array, tensors, name, &error)) || !CHECK(array.type == PEFT_F32)) return NULL;
  *count = (int64_t)(array.size / sizeof(float));
  return (const float *)array.data;
}

/* Sum of absolute differences of an array in two collections; NaN when they do not fit. */
static inline double difference(const peft_tensors *a, const peft_tensors *b, const char *name) {
  int64_t count_a, count_b;
  const float *x = floats(a, name, &count_a), *y = floats(b, name, &count_b);
  if (!x || !y || count_a != count_b) return NAN;
  double sum = 0;
  for (int64_t i = 0; i < count_a; i++) sum += fabs((double)x[i] - (double)y[i]);
  return sum;
}

/* The logits of a batch. */
static inline peft_tensors *run_forward(const peft_model *model, const peft_tensors *batch) {
  peft_tensors *outputs = NULL;
  OK(peft_model_forward(&outputs, model, batch, NULL, &error));
  return outputs;
}

/* A few training steps on one batch, so that an adapter does something. */
static inline void train_a_little(peft_model *model, const peft_tensors *batch, int steps) {
  peft_trainer *trainer = NULL;
  OK(peft_trainer_create(&trainer, model, "{\"lr\": 0.05, \"lr_scheduler\": \"constant\"}", &error));
  for (int i = 0; i < steps; i++) {
    peft_step step = PEFT_STEP_INIT;
    OK(peft_trainer_step(&step, trainer, batch, &error));
  }
  peft_trainer_free(trainer);
}

/* Whether a JSON text has this piece ("\"r\": 4"). */
static inline int has(const char *text, const char *piece) { return strstr(text, piece) != NULL; }

#endif
