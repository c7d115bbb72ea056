/* Memory that is not there: a budget too small, a host allocator that fails the n-th time. The host lives, errors say so, nothing leaks. */
#include "fixtures.h"

#include <pthread.h>

/* ---- a counting allocator of the host */

typedef struct {
  pthread_mutex_t lock;
  int64_t calls, live_blocks, live_bytes;
  int64_t fails_at; /* number of the call that fails; 0: none */
  int fails_from_then_on;
  int is_wrong; /* a size or an alignment that cannot be */
} counting_allocator;

static void *count_allocate(void *user_data, size_t size, size_t alignment) {
  counting_allocator *a = user_data;
  pthread_mutex_lock(&a->lock);
  a->calls++;
  const int fails = a->fails_at && (a->calls == a->fails_at || (a->fails_from_then_on && a->calls > a->fails_at));
  void *memory = NULL;
  if (alignment > 4096 || (alignment & (alignment - 1))) a->is_wrong = 1;
  if (!fails && posix_memalign(&memory, alignment, size) == 0) {
    memset(memory, 0xa5, size); /* fresh memory is not zero */
    a->live_blocks++;
    a->live_bytes += (int64_t)size;
  }
  pthread_mutex_unlock(&a->lock);
  return memory;
}

static void count_free(void *user_data, void *pointer, size_t size) {
  counting_allocator *a = user_data;
  pthread_mutex_lock(&a->lock);
  if (!pointer || a->live_blocks <= 0) a->is_wrong = 1;
  a->live_blocks--;
  a->live_bytes -= (int64_t)size;
  pthread_mutex_unlock(&a->lock);
  free(pointer);
}

/* ---- everything a host does, until something fails */

#define TRY(call)                    \
  do {                               \
    code = (call);                   \
    if (code < 0) goto end;          \
  } while (0)

/* Opens, adapts, trains, saves, merges, generates. Returns the first error; all handles are freed. */
static int32_t live_through(const peft_context_options *options) {
  int32_t code;
  peft_context *context = NULL;
  peft_model *model = NULL;
  peft_tensors *batch = NULL, *outputs = NULL, *gradients = NULL, *next = NULL;
  peft_tokenizer *tokenizer = NULL;
  peft_dataset *dataset = NULL;
  peft_trainer *trainer = NULL;
  peft_session *session = NULL, *fork = NULL;
  peft_step step = PEFT_STEP_INIT;
  const int64_t ids[10] = {1, 7, 9, 11, 13, 1, 20, 22, 24, 26}, shape[2] = {2, 5};
  TRY(peft_context_create(&context, options, &error));
  TRY(peft_model_open(&model, context, model_folder, NULL, &error));
  TRY(peft_adapter_add(model, "a", lora, NULL, &error));
  TRY(peft_tensors_create(&batch, context, &error));
  TRY(peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error));
  TRY(peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error));
  TRY(peft_model_forward(&outputs, model, batch, "{\"outputs\": [\"logits\", \"last_hidden_state\"]}", &error));
  TRY(peft_model_gradients(&gradients, NULL, model, batch, NULL, &error));
  TRY(peft_model_tokenizer(&tokenizer, model, &error));
  TRY(peft_dataset_open(&dataset, tokenizer, MODEL_FILE("conversations.jsonl"), "{\"max_length\": 48}", &error));
  TRY(peft_dataset_next(&next, dataset, &error));
  TRY(peft_trainer_create(&trainer, model, "{\"max_steps\": 2}", &error));
  TRY(peft_trainer_step(&step, trainer, batch, &error));
  TRY(peft_trainer_run(trainer, dataset, dataset, NULL, NULL, &error));
  TRY(peft_trainer_save(trainer, dataset, SCRATCH("checkpoint.h5"), &error));
  TRY(peft_trainer_resume(trainer, dataset, SCRATCH("checkpoint.h5"), &error));
  TRY(peft_adapter_save(model, "a", SCRATCH("adapter"), &error));
  TRY(peft_adapter_load(model, "b", SCRATCH("adapter"), 0, &error));
  TRY(peft_session_create(&session, model, "{\"ignore_eos\": true}", &error));
  TRY(peft_session_append_text(session, "the iron", SIZE_MAX, 1, &error));
  TRY(peft_session_generate(session, 3, NULL, NULL, &error));
  TRY(peft_session_fork(&fork, session, &error));
  TRY(peft_model_merge(NULL, 0, NULL, model, NULL, 0, NULL, &error));
  TRY(peft_model_unmerge(model, &error));
  TRY(peft_model_export(model, SCRATCH("exported"), "{\"dtype\": \"bfloat16\"}", &error));
  code = PEFT_OK;
end:
  peft_context_free(context), peft_model_free(model), peft_tensors_free(batch), peft_tensors_free(outputs), peft_tensors_free(gradients), peft_tensors_free(next);
  peft_tokenizer_free(tokenizer), peft_dataset_free(dataset), peft_trainer_free(trainer), peft_session_free(session), peft_session_free(fork);
  return code;
}

static void fail_each_allocation(int from_then_on) {
  counting_allocator a = {.lock = PTHREAD_MUTEX_INITIALIZER};
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 2;
  options.allocate = count_allocate;
  options.deallocate = count_free;
  options.user_data = &a;
  OK(live_through(&options));
  CHECK(a.calls > 50 && a.live_blocks == 0 && a.live_bytes == 0 && !a.is_wrong);
  const int64_t all = a.calls;
  int64_t refused = 0;
  for (int64_t n = 1; n <= all; n++) {
    a.calls = 0;
    a.fails_at = n;
    a.fails_from_then_on = from_then_on;
    const int32_t code = live_through(&options);
    refused += code != PEFT_OK;
    /* A block that is refused once may be found among the kept ones. */
    const int is_right = (code == PEFT_ERROR_MEMORY && error.detail > 0) || (code == PEFT_OK && !from_then_on);
    if (!CHECK(is_right && a.live_blocks == 0 && a.live_bytes == 0 && !a.is_wrong)) {
      printf("    allocation %d of %d, %d blocks left\n", (int)n, (int)all, (int)a.live_blocks);
      return;
    }
  }
  CHECK(!from_then_on || refused == all);
}

TEST(each_allocation_may_fail_once) { fail_each_allocation(0); }
TEST(each_allocation_may_be_the_last) { fail_each_allocation(1); }

TEST(a_budget_too_small) {
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 1;
  int refused = 0;
  int32_t code = PEFT_ERROR_MEMORY;
  for (uint64_t budget = 64; code != PEFT_OK && budget < (1u << 30); budget += budget / 8 + 64) {
    options.memory_budget = budget;
    code = live_through(&options);
    if (code == PEFT_OK) break;
    refused++;
    char number[32];
    snprintf(number, sizeof number, "%llu", (unsigned long long)budget);
    CHECK(code == PEFT_ERROR_MEMORY && error.detail > 0 && strstr(error.message, number));
  }
  CHECK(code == PEFT_OK && refused > 10);
}

/* A step that does not fit says how much it needs, takes nothing, and the model goes on. */
TEST(a_step_that_does_not_fit) {
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 1;
  options.memory_budget = 1 << 20;
  peft_context *context = NULL;
  OK(peft_context_create(&context, &options, &error));
  peft_model *model = open_model(context);
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  peft_trainer *trainer = NULL;
  OK(peft_trainer_create(&trainer, model, "{\"lr_scheduler\": \"constant\"}", &error));
  char plan[1024];
  OK(peft_trainer_plan(plan, sizeof plan, NULL, trainer, 64, 64, &error));
  CHECK(has(plan, "\"fits\": false"));
  static int64_t ids[64 * 64];
  for (int i = 0; i < 64 * 64; i++) ids[i] = i % 90;
  peft_tensors *batch, *small = make_batch(context);
  OK(peft_tensors_create(&batch, context, &error));
  OK(peft_tensors_set(batch, "input_ids", PEFT_I64, 2, (int64_t[]){64, 64}, ids, &error));
  OK(peft_tensors_set(batch, "labels", PEFT_I64, 2, (int64_t[]){64, 64}, ids, &error));
  peft_step step = PEFT_STEP_INIT;
  FAILS_NAMING(PEFT_ERROR_MEMORY, "1048576", peft_trainer_step(&step, trainer, batch, &error));
  peft_tensors_free(batch);
  OK(peft_trainer_step(&step, trainer, small, &error));
  peft_tensors_free(small), peft_trainer_free(trainer), peft_model_free(model), peft_context_free(context);
}

/* ---- hooks must not call the library: an answer, no deadlock */

typedef struct {
  peft_context *context;
  peft_model *model;
  int32_t code;
  int calls;
} hooked;

static void *allocate_and_ask(void *user_data, size_t size, size_t alignment) {
  hooked *h = user_data;
  void *memory = NULL;
  char text[64];
  if (h->context) {
    h->code = peft_context_memory(text, sizeof text, NULL, h->context, NULL);
    peft_model_free(h->model); /* nothing happens */
    h->calls++;
  }
  return posix_memalign(&memory, alignment, size) ? NULL : memory;
}

static void free_and_ask(void *user_data, void *pointer, size_t size) {
  hooked *h = user_data;
  (void)size;
  if (h->context) h->code = peft_context_trim(h->context, NULL);
  free(pointer);
}

static void log_and_ask(void *user_data, int32_t level, const char *message) {
  hooked *h = user_data;
  if (h->model && level == PEFT_LOG_WARNING && message[0]) {
    h->code = peft_adapter_set_enabled(h->model, 0, NULL);
    h->calls++;
  }
}

TEST(hooks_that_call_back_get_an_error) {
  hooked h = {.code = PEFT_OK};
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 1;
  options.allocate = allocate_and_ask;
  options.deallocate = free_and_ask;
  options.user_data = &h;
  peft_context *context = NULL;
  OK(peft_context_create(&context, &options, &error));
  h.model = open_model(context);
  h.context = context;
  peft_tensors *batch = make_batch(context), *outputs = run_forward(h.model, batch);
  CHECK(h.calls > 0 && h.code == PEFT_ERROR_STATE);
  peft_tensors_free(outputs), peft_tensors_free(batch);
  OK(peft_context_trim(context, &error));
  CHECK(h.code == PEFT_ERROR_STATE);
  h.context = NULL;
  peft_model_free(h.model), peft_context_free(context);

  hooked l = {.code = PEFT_OK};
  options.allocate = NULL, options.deallocate = NULL;
  options.log = log_and_ask;
  options.user_data = &l;
  OK(peft_context_create(&context, &options, &error));
  l.model = open_model(context);
  OK(peft_adapter_add(l.model, "a", "{\"peft_type\": \"LORA\", \"r\": 2, \"target_modules\": [\"q_proj\"], \"a_key_of_the_future\": 1}", NULL, &error));
  CHECK(l.calls > 0 && l.code == PEFT_ERROR_STATE);
  peft_model_free(l.model), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(each_allocation_may_fail_once);
  RUN(each_allocation_may_be_the_last);
  RUN(a_budget_too_small);
  RUN(a_step_that_does_not_fit);
  RUN(hooks_that_call_back_get_an_error);
  return finish();
}
