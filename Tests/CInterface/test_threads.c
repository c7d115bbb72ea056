/* Several threads over one model; the host's own parallel-for; results that do not depend on threads. */
#include "fixtures.h"

#include <pthread.h>

enum { workers = 4, rounds = 15 };

typedef struct {
  const peft_model *model;
  peft_session *session;
  const peft_context *context;
  int index, failures;
} worker;

static void *talk(void *user_data) {
  worker *w = user_data;
  for (int i = 0; i < rounds; i++) {
    peft_error own = PEFT_ERROR_INIT;
    int32_t ids[4] = {1, 30 + w->index, 31, 32};
    w->failures += peft_session_rewind(w->session, 0, &own) != PEFT_OK || peft_session_append(w->session, ids, 4, &own) != PEFT_OK ||
                   peft_session_generate(w->session, 20, NULL, NULL, &own) < 0;
  }
  return NULL;
}

static void *compute(void *user_data) {
  worker *w = user_data;
  for (int i = 0; i < rounds; i++) {
    peft_tensors *batch = make_batch(w->context), *outputs = NULL, *gradients = NULL;
    double loss;
    w->failures += peft_model_forward(&outputs, w->model, batch, NULL, NULL) != PEFT_OK || peft_model_gradients(&gradients, &loss, w->model, batch, NULL, NULL) != PEFT_OK;
    peft_tensors_free(batch), peft_tensors_free(outputs), peft_tensors_free(gradients);
  }
  return NULL;
}

TEST(sessions_passes_and_a_trainer_at_once) {
  peft_context *context = open_context(2);
  peft_model *model = open_model(context);
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  OK(peft_adapter_add(model, "b", lora, "{\"seed\": 7}", &error));
  peft_trainer *trainer = NULL;
  OK(peft_trainer_create(&trainer, model, "{\"lr\": 0.01, \"lr_scheduler\": \"constant\"}", &error));
  peft_tensors *batch = make_batch(context);
  worker all[2 * workers];
  pthread_t threads[2 * workers];
  for (int i = 0; i < 2 * workers; i++) {
    all[i] = (worker){model, NULL, context, i, 0};
    if (i < workers) OK(peft_session_create(&all[i].session, model, "{\"ignore_eos\": true}", &error));
    pthread_create(&threads[i], NULL, i < workers ? talk : compute, &all[i]);
  }
  /* One of them acts at any time: gradients with none would be PEFT_ERROR_STATE. */
  const char *a = "a", *b = "b";
  for (int i = 0; i < 40; i++) {
    peft_step step = PEFT_STEP_INIT;
    OK(peft_trainer_step(&step, trainer, batch, &error));
    OK(peft_adapter_set_active(model, i % 2 ? &a : &b, NULL, 1, &error));
    OK(peft_adapter_set_active(model, &a, NULL, 1, &error));
  }
  for (int i = 0; i < 2 * workers; i++) {
    pthread_join(threads[i], NULL);
    CHECK(all[i].failures == 0);
    peft_session_free(all[i].session);
  }
  peft_tensors_free(batch), peft_trainer_free(trainer), peft_model_free(model), peft_context_free(context);
}

/* One session, two threads: one of them is told so, nobody waits for ever. */
static void *disturb(void *user_data) {
  worker *w = user_data;
  for (int i = 0; i < 3000; i++) {
    int32_t id = 5;
    const int32_t code = peft_session_append(w->session, &id, 1, NULL);
    if (code != PEFT_OK && code != PEFT_ERROR_STATE && code != PEFT_ERROR_CONTEXT_FULL) w->failures++;
  }
  return NULL;
}

TEST(one_session_in_two_threads) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  worker w = {model, NULL, context, 0, 0};
  OK(peft_session_create(&w.session, model, "{\"ignore_eos\": true, \"on_full\": \"shift\"}", &error));
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, disturb, &w);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  CHECK(w.failures == 0);
  peft_session_free(w.session), peft_model_free(model), peft_context_free(context);
}

/* Handles that are freed while other threads use them. */
static void *use(void *user_data) {
  worker *w = user_data;
  peft_tensors *batch = make_batch(w->context);
  int32_t code = PEFT_OK;
  while (code == PEFT_OK) {
    peft_tensors *outputs = NULL;
    code = peft_model_forward(&outputs, w->model, batch, NULL, NULL);
    peft_tensors_free(outputs);
  }
  w->failures = code != PEFT_ERROR_HANDLE;
  peft_tensors_free(batch);
  return NULL;
}

TEST(freeing_what_others_use) {
  for (int i = 0; i < 20; i++) {
    peft_context *context = open_context(2);
    peft_model *model = open_model(context);
    worker w = {model, NULL, context, 0, 0};
    pthread_t threads[3];
    for (int t = 0; t < 3; t++) pthread_create(&threads[t], NULL, use, &w);
    peft_model_free(model);
    for (int t = 0; t < 3; t++) pthread_join(threads[t], NULL);
    CHECK(w.failures == 0);
    peft_context_free(context);
  }
}

/* Enough work to be divided. */
static peft_tensors *make_large_batch(const peft_context *context) {
  enum { rows = 32, length = 60 };
  static int64_t ids[rows * length];
  for (int i = 0; i < rows * length; i++) ids[i] = 1 + i * 7 % 90;
  const int64_t shape[2] = {rows, length};
  peft_tensors *batch = NULL;
  OK(peft_tensors_create(&batch, context, &error));
  OK(peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error));
  OK(peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error));
  return batch;
}

/* The host's threads: backwards, to show that the order does not matter. */
static int parallel_calls;
static void run_backwards(void *user_data, int32_t count, peft_parallel_body_fn body, void *body_data) {
  (void)user_data;
  parallel_calls++;
  for (int32_t i = count - 1; i >= 0; i--) body(body_data, i);
}

TEST(results_do_not_depend_on_threads) {
  peft_tensors *states[4] = {NULL};
  for (int i = 0; i < 4; i++) {
    peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
    options.threads = i == 3 ? 5 : i + 1;
    if (i == 3) options.parallel_for = run_backwards;
    peft_context *context = NULL;
    OK(peft_context_create(&context, &options, &error));
    peft_model *model = open_model(context);
    peft_tensors *batch = make_large_batch(context);
    OK(peft_adapter_add(model, "a", "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_dropout\": 0.2, \"target_modules\": \"all-linear\"}", NULL, &error));
    train_a_little(model, batch, 4);
    OK(peft_adapter_state(&states[i], model, "a", &error));
    peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
  }
  CHECK(parallel_calls > 0);
  for (int i = 1; i < 4; i++) {
    for (int64_t k = 0; k < peft_tensors_count(states[0]); k++) CHECK(difference(states[0], states[i], peft_tensors_name(states[0], k)) == 0);
    peft_tensors_free(states[i]);
  }
  peft_tensors_free(states[0]);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(sessions_passes_and_a_trainer_at_once);
  RUN(one_session_in_two_threads);
  RUN(freeing_what_others_use);
  RUN(results_do_not_depend_on_threads);
  return finish();
}
