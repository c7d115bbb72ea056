/* Trainers: steps, runs, evaluation, plans, checkpoints, cancelling. */
#include "fixtures.h"

#include <pthread.h>
#include <unistd.h>

/* A model with one adapter, a trainer of it, and data. */
typedef struct {
  peft_context *context;
  peft_model *model;
  peft_tokenizer *tokenizer;
  peft_dataset *dataset;
  peft_trainer *trainer;
} training;

static training open_training(const char *options, const char *data_options) {
  training t = {open_context(1), NULL, NULL, NULL, NULL};
  t.model = open_model(t.context);
  OK(peft_model_tokenizer(&t.tokenizer, t.model, &error));
  OK(peft_adapter_add(t.model, "a", "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_dropout\": 0.1, \"target_modules\": \"all-linear\"}", NULL, &error));
  OK(peft_dataset_open(&t.dataset, t.tokenizer, MODEL_FILE("conversations.jsonl"), data_options, &error));
  OK(peft_trainer_create(&t.trainer, t.model, options, &error));
  return t;
}

static void close_training(training *t) {
  peft_context_free(t->context), peft_tokenizer_free(t->tokenizer), peft_model_free(t->model), peft_dataset_free(t->dataset), peft_trainer_free(t->trainer);
}

/* Sum of absolute differences of two adapters. */
static double adapter_difference(const training *a, const training *b) {
  peft_tensors *x = NULL, *y = NULL;
  double sum = 0;
  OK(peft_adapter_state(&x, a->model, "a", &error));
  OK(peft_adapter_state(&y, b->model, "a", &error));
  CHECK(peft_tensors_count(x) > 0);
  for (int64_t i = 0; i < peft_tensors_count(x); i++) sum += difference(x, y, peft_tensors_name(x, i));
  peft_tensors_free(x), peft_tensors_free(y);
  return sum;
}

TEST(steps_learn) {
  training t = open_training("{\"lr\": 0.02, \"lr_scheduler\": \"constant\", \"gradient_accumulation_steps\": 2}", NULL);
  peft_tensors *batch = make_batch(t.context);
  peft_step step = PEFT_STEP_INIT;
  double first = 0;
  for (int i = 0; i < 20; i++) {
    OK(peft_trainer_step(&step, t.trainer, batch, &error));
    CHECK(step.updated == i % 2 && step.step == (i + 1) / 2 && step.tokens == 10);
    if (i == 0) first = step.loss;
  }
  CHECK(step.loss < first - 0.1 && step.gradient_norm > 0 && fabs(step.learning_rate - 0.02) < 1e-9);
  /* An older record is filled as far as it goes. */
  step.struct_size = (uint32_t)offsetof(peft_step, learning_rate);
  step.learning_rate = 77;
  OK(peft_trainer_step(&step, t.trainer, batch, &error));
  CHECK(step.learning_rate == 77 && step.loss < first);
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_step(NULL, t.trainer, batch, &error));
  step.struct_size = 0;
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_step(&step, t.trainer, batch, &error));
  peft_tensors_free(batch), close_training(&t);
}

TEST(a_wrong_batch_changes_nothing) {
  training t = open_training("{\"lr\": 0.02, \"lr_scheduler\": \"constant\"}", NULL), untouched = open_training("{}", NULL);
  peft_tensors *batch = make_batch(t.context);
  const int64_t ignored[10] = {-100, -100, -100, -100, -100, -100, -100, -100, -100, -100};
  peft_step step = PEFT_STEP_INIT;
  OK(peft_tensors_set(batch, "labels", PEFT_I64, 2, (int64_t[]){2, 5}, ignored, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "-100", peft_trainer_step(&step, t.trainer, batch, &error));
  CHECK(step.loss == 0 && step.step == 0);
  OK(peft_tensors_set(batch, "labels", PEFT_I64, 2, (int64_t[]){5, 1}, ignored, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_step(&step, t.trainer, batch, &error));
  CHECK(adapter_difference(&t, &untouched) == 0);
  peft_tensors_free(batch), close_training(&t), close_training(&untouched);
}

TEST(wrong_options_are_named) {
  training t = open_training("{}", NULL);
  peft_trainer *trainer = NULL;
  static const struct { const char *options, *part; } wrong[] = {
      {"{\"learning_rate\": 1}", "learning_rate"}, {"{\"lr\": -1}", "lr"}, {"{\"lr\": \"fast\"}", "lr"}, {"{\"optimizer\": \"adagrad\"}", "adagrad"},
      {"{\"lr_scheduler\": \"step\"}", "step"}, {"{\"max_steps\": 0}", "max_steps"}, {"{\"betas\": [0.9]}", "betas"}, {"{\"epochs\": 0}", "epochs"},
      {"{\"gradient_checkpointing\": 1}", "gradient_checkpointing"}, {"{\"adapter\": 5}", "adapter"}, {"null", "null"}, {"{\"lr\":}", "JSON"}};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    const int32_t code = peft_trainer_create(&trainer, t.model, wrong[i].options, &error);
    if (!CHECK(code == PEFT_ERROR_ARGUMENT && trainer == NULL && strstr(error.message, wrong[i].part))) printf("    for %s\n", wrong[i].options);
  }
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "b", peft_trainer_create(&trainer, t.model, "{\"adapter\": \"b\"}", &error));
  OK(peft_trainer_create(&trainer, t.model, "{\"adapter\": \"a\"}", &error));
  peft_trainer_free(trainer);
  OK(peft_adapter_set_trainable(t.model, "a", 0, &error));
  FAILS(PEFT_ERROR_STATE, peft_trainer_create(&trainer, t.model, NULL, &error));
  OK(peft_adapter_remove(t.model, "a", &error));
  FAILS(PEFT_ERROR_STATE, peft_trainer_create(&trainer, t.model, NULL, &error));
  close_training(&t);
}

/* What a progress callback saw, and what it does. */
typedef struct {
  training *t;
  int calls, cancel_at;
  int32_t step_inside, next_inside, save_inside, plan_inside;
  peft_training_progress last;
} watcher;

static int32_t watch(void *user_data, const peft_training_progress *progress) {
  watcher *w = user_data;
  w->calls++;
  w->last = *progress;
  return w->calls == w->cancel_at;
}

TEST(a_run_reports_and_ends) {
  training t = open_training("{\"lr\": 0.01, \"epochs\": 3, \"evaluation_steps\": 2}", "{\"batch_size\": 2, \"max_length\": 48}");
  watcher w = {.t = &t};
  double before, after;
  OK(peft_trainer_evaluate(&before, t.trainer, t.dataset, &error));
  OK(peft_trainer_run(t.trainer, t.dataset, t.dataset, watch, &w, &error));
  CHECK(w.calls == 9 && w.last.step == 9 && w.last.total_steps == 9 && w.last.struct_size == sizeof w.last);
  CHECK(w.last.loss > 0 && w.last.tokens_per_second > 0 && w.last.memory_peak >= w.last.memory && w.last.memory > 0 && w.last.seconds > 0);
  OK(peft_trainer_evaluate(&after, t.trainer, t.dataset, &error));
  CHECK(after < before && fabs(after - w.last.evaluation_loss) < 1e-6);
  OK(peft_trainer_run(t.trainer, t.dataset, NULL, NULL, NULL, &error)); /* it is over */
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_evaluate(NULL, t.trainer, t.dataset, &error));
  close_training(&t);
}

TEST(a_callback_cancels_and_the_run_can_go_on) {
  const char *options = "{\"lr\": 0.01, \"max_steps\": 8, \"lr_scheduler\": \"cosine\"}", *data = "{\"max_length\": 48}";
  training whole = open_training(options, data), halves = open_training(options, data);
  OK(peft_trainer_run(whole.trainer, whole.dataset, NULL, NULL, NULL, &error));
  watcher w = {.t = &halves, .cancel_at = 3};
  FAILS(PEFT_ERROR_CANCELLED, peft_trainer_run(halves.trainer, halves.dataset, NULL, watch, &w, &error));
  CHECK(w.last.step == 3);
  OK(peft_adapter_save(halves.model, "a", SCRATCH("cancelled"), &error));
  OK(peft_trainer_run(halves.trainer, halves.dataset, NULL, watch, &w, &error));
  CHECK(w.last.step == 8 && adapter_difference(&whole, &halves) == 0);
  close_training(&whole), close_training(&halves);
}

static int32_t reenter(void *user_data, const peft_training_progress *progress) {
  watcher *w = user_data;
  peft_tensors *batch = NULL;
  peft_step step = PEFT_STEP_INIT;
  char text[1024];
  (void)progress;
  peft_tensors *inputs = make_batch(w->t->context);
  w->step_inside = peft_trainer_step(&step, w->t->trainer, inputs, NULL);
  w->next_inside = peft_dataset_next(&batch, w->t->dataset, NULL);
  w->save_inside = peft_trainer_save(w->t->trainer, w->t->dataset, SCRATCH("inside.h5"), NULL);
  w->plan_inside = peft_trainer_plan(text, sizeof text, NULL, w->t->trainer, 1, 8, NULL);
  /* The model's handle is not in use: its adapter may be saved, and it may answer. */
  CHECK(peft_adapter_save(w->t->model, "a", SCRATCH("inside"), NULL) == PEFT_OK);
  peft_tensors *outputs = run_forward(w->t->model, inputs);
  peft_tensors_free(outputs), peft_tensors_free(inputs);
  return 1;
}

TEST(callbacks_may_look_but_not_touch) {
  training t = open_training("{\"lr\": 0.01, \"max_steps\": 3}", "{\"max_length\": 48}");
  watcher w = {.t = &t};
  FAILS(PEFT_ERROR_CANCELLED, peft_trainer_run(t.trainer, t.dataset, NULL, reenter, &w, &error));
  CHECK(w.step_inside == PEFT_ERROR_STATE && w.next_inside == PEFT_ERROR_STATE && w.save_inside == PEFT_OK && w.plan_inside == PEFT_OK);
  OK(peft_trainer_resume(t.trainer, t.dataset, SCRATCH("inside.h5"), &error));
  OK(peft_trainer_run(t.trainer, t.dataset, NULL, NULL, NULL, &error));
  close_training(&t);
}

static int32_t free_everything(void *user_data, const peft_training_progress *progress) {
  training *t = user_data;
  (void)progress;
  close_training(t);
  return 0;
}

TEST(handles_may_be_freed_inside_their_own_call) {
  training t = open_training("{\"lr\": 0.01, \"max_steps\": 3}", "{\"max_length\": 48}");
  OK(peft_trainer_run(t.trainer, t.dataset, NULL, free_everything, &t, &error));
  FAILS(PEFT_ERROR_HANDLE, peft_trainer_run(t.trainer, t.dataset, NULL, NULL, NULL, &error));
}

static void *cancel_soon(void *trainer) {
  usleep(30000);
  peft_trainer_cancel(trainer, NULL);
  return NULL;
}

TEST(another_thread_cancels) {
  training t = open_training("{\"lr\": 0.01, \"max_steps\": 100000000}", "{\"max_length\": 48}");
  pthread_t thread;
  pthread_create(&thread, NULL, cancel_soon, t.trainer);
  FAILS(PEFT_ERROR_CANCELLED, peft_trainer_run(t.trainer, t.dataset, NULL, NULL, NULL, &error));
  pthread_join(thread, NULL);
  OK(peft_trainer_cancel(t.trainer, &error)); /* nothing runs: the next call ends at once */
  FAILS(PEFT_ERROR_CANCELLED, peft_trainer_run(t.trainer, t.dataset, NULL, NULL, NULL, &error));
  peft_step step = PEFT_STEP_INIT;
  OK(peft_trainer_advance(&step, t.trainer, t.dataset, 0, &error));
  close_training(&t);
}

TEST(slices_are_the_same_run) {
  const char *options = "{\"lr\": 0.01, \"max_steps\": 5, \"lr_scheduler\": \"linear\"}", *data = "{\"max_length\": 48}";
  training whole = open_training(options, data), sliced = open_training(options, data);
  OK(peft_trainer_run(whole.trainer, whole.dataset, NULL, NULL, NULL, &error));
  peft_step step = PEFT_STEP_INIT;
  int32_t code, calls = 0;
  while ((code = peft_trainer_advance(&step, sliced.trainer, sliced.dataset, 0, &error)) == PEFT_OK && calls < 100) calls++;
  CHECK(code == PEFT_DONE && calls >= 4 && adapter_difference(&whole, &sliced) == 0);
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_advance(&step, sliced.trainer, sliced.dataset, -1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_advance(&step, sliced.trainer, sliced.dataset, NAN, &error));
  close_training(&whole), close_training(&sliced);
}

TEST(plans) {
  training t = open_training("{\"gradient_checkpointing\": false}", NULL);
  char text[1024];
  size_t needed;
  OK(peft_trainer_plan(text, sizeof text, &needed, t.trainer, 2, 32, &error));
  CHECK(has(text, "\"total\": ") && has(text, "\"activations\": ") && has(text, "\"gradient_checkpointing\": false") && has(text, "\"fits\": true"));
  static const int64_t wrong[][2] = {{0, 1}, {1, 0}, {-1, 4}, {1, 65}, {INT64_MAX, INT64_MAX}, {INT64_MAX, 1}, {INT32_MAX, 1}, {INT64_MIN, INT64_MIN}};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_plan(text, sizeof text, &needed, t.trainer, wrong[i][0], wrong[i][1], &error));
  close_training(&t);
}

TEST(checkpoints_continue_bit_by_bit) {
  const char *options = "{\"lr\": 0.01, \"max_steps\": 10, \"lr_scheduler\": \"cosine\"}", *data = "{\"max_length\": 48, \"batch_size\": 2}";
  training whole = open_training(options, data), first = open_training(options, data), second = open_training(options, data);
  OK(peft_trainer_run(whole.trainer, whole.dataset, NULL, NULL, NULL, &error));
  watcher w = {.t = &first, .cancel_at = 5};
  FAILS(PEFT_ERROR_CANCELLED, peft_trainer_run(first.trainer, first.dataset, NULL, watch, &w, &error));
  OK(peft_trainer_save(first.trainer, first.dataset, SCRATCH("half.h5"), &error));
  OK(peft_trainer_resume(second.trainer, second.dataset, SCRATCH("half.h5"), &error));
  OK(peft_trainer_run(second.trainer, second.dataset, NULL, NULL, NULL, &error));
  CHECK(adapter_difference(&whole, &second) == 0);
  /* A checkpoint is an adapter too. */
  OK(peft_adapter_load(whole.model, "from checkpoint", SCRATCH("half.h5"), 0, &error));

  training other = open_training("{\"lr\": 0.02, \"max_steps\": 10, \"lr_scheduler\": \"cosine\"}", data);
  FAILS_NAMING(PEFT_ERROR_MISMATCH, "lr", peft_trainer_resume(other.trainer, other.dataset, SCRATCH("half.h5"), &error));
  FAILS(PEFT_ERROR_NOT_FOUND, peft_trainer_resume(other.trainer, NULL, SCRATCH("nowhere.h5"), &error));
  FAILS(PEFT_ERROR_FORMAT, peft_trainer_resume(other.trainer, NULL, MODEL_FILE("config.json"), &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_trainer_resume(other.trainer, NULL, NULL, &error));
  FAILS(PEFT_ERROR_IO, peft_trainer_save(other.trainer, NULL, SCRATCH("half.h5/below.h5"), &error));
  OK(peft_adapter_save(first.model, "a", SCRATCH("only_adapter.h5"), &error));
  FAILS(PEFT_ERROR_MISMATCH, peft_trainer_resume(other.trainer, NULL, SCRATCH("only_adapter.h5"), &error));
  close_training(&whole), close_training(&first), close_training(&second), close_training(&other);
}

/* A learning rate of 1e30 makes the weights overflow: the step that meets it says so and changes nothing. */
TEST(a_loss_that_is_not_finite) {
  training t = open_training("{\"lr\": 1e30, \"lr_scheduler\": \"constant\", \"max_grad_norm\": null}", NULL);
  peft_tensors *batch = make_batch(t.context), *before = NULL, *after = NULL;
  peft_step step = PEFT_STEP_INIT;
  int32_t code = PEFT_OK;
  for (int i = 0; i < 5 && code == PEFT_OK; i++) {
    peft_tensors_free(before);
    OK(peft_adapter_state(&before, t.model, "a", &error));
    code = peft_trainer_step(&step, t.trainer, batch, &error);
  }
  CHECK(code == PEFT_ERROR_NUMERIC && step.loss == 0);
  OK(peft_adapter_state(&after, t.model, "a", &error));
  for (int64_t i = 0; i < peft_tensors_count(after); i++) CHECK(difference(before, after, peft_tensors_name(after, i)) == 0);
  peft_tensors_free(before), peft_tensors_free(after), peft_tensors_free(batch), close_training(&t);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(steps_learn);
  RUN(a_wrong_batch_changes_nothing);
  RUN(wrong_options_are_named);
  RUN(a_run_reports_and_ends);
  RUN(a_callback_cancels_and_the_run_can_go_on);
  RUN(callbacks_may_look_but_not_touch);
  RUN(handles_may_be_freed_inside_their_own_call);
  RUN(another_thread_cancels);
  RUN(slices_are_the_same_run);
  RUN(plans);
  RUN(checkpoints_continue_bit_by_bit);
  RUN(a_loss_that_is_not_finite);
  return finish();
}
