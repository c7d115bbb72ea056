/* Sessions: reading, pulling and pushing tokens, text, adapters, forks, limits. */
#include "fixtures.h"

#include <pthread.h>
#include <unistd.h>

static peft_session *open_session(const peft_model *model, const char *options) {
  peft_session *session = NULL;
  OK(peft_session_create(&session, model, options, &error));
  return session;
}

static const int32_t prompt[4] = {1, 30, 31, 32};

typedef struct {
  char text[4096];
  size_t size;
  int calls, stop_at;
  peft_session *session;
  int32_t inside[4];
} reader;

static int32_t read_text(void *user_data, const char *text, size_t size) {
  reader *r = user_data;
  if (r->size + size < sizeof r->text) memcpy(r->text + r->size, text, size);
  r->size += size;
  return ++r->calls == r->stop_at;
}

TEST(pulling_and_pushing_give_the_same) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  const char *options = "{\"ignore_eos\": true, \"temperature\": 0.8, \"top_k\": 40, \"top_p\": 0.95, \"min_p\": 0.01, \"repetition_penalty\": 1.1, \"seed\": 3}";
  peft_session *push = open_session(model, options), *pull = open_session(model, options);
  OK(peft_session_append(push, prompt, 4, &error));
  OK(peft_session_append(pull, prompt, 4, &error));
  reader r = {.calls = 0};
  OK(peft_session_generate(push, 20, read_text, &r, &error));
  char text[4096] = "", piece[256];
  int32_t tokens[64], ids[64];
  size_t needed;
  for (int i = 0; i < 20; i++) {
    OK(peft_session_next(&tokens[i], piece, sizeof piece, &needed, pull, &error));
    CHECK(needed == strlen(piece) && tokens[i] >= 0);
    strcat(text, piece);
  }
  OK(peft_session_tokens(ids, 64, &needed, push, &error));
  CHECK(needed == 24 && memcmp(ids, prompt, sizeof prompt) == 0 && memcmp(ids + 4, tokens, 20 * sizeof tokens[0]) == 0);
  CHECK(strlen(text) <= r.size && memcmp(text, r.text, strlen(text)) == 0);
  ids[0] = -9;
  OK(peft_session_tokens(ids, 23, &needed, push, &error));
  CHECK(needed == 24 && ids[0] == -9);
  peft_session_free(push), peft_session_free(pull), peft_model_free(model), peft_context_free(context);
}

TEST(text_and_chat) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = open_session(model, NULL), *chat = open_session(model, NULL);
  OK(peft_session_append_text(session, "the iron", SIZE_MAX, 1, &error));
  int32_t ids[64];
  size_t before, after;
  OK(peft_session_tokens(ids, 64, &before, session, &error));
  CHECK(ids[0] == 1 && before > 3);
  OK(peft_session_append_chat(chat, "[{\"role\": \"user\", \"content\": \"who\"}]", &error));
  OK(peft_session_tokens(ids, 64, &before, chat, &error));
  OK(peft_session_append_chat(chat, "[{\"role\": \"user\", \"content\": \"who\"}, {\"role\": \"assistant\", \"content\": \"I\"}, {\"role\": \"user\", \"content\": \"why\"}]", &error));
  OK(peft_session_tokens(ids, 64, &after, chat, &error));
  CHECK(after > before);
  char text[512];
  OK(peft_session_describe(text, sizeof text, &before, chat, &error));
  CHECK(has(text, "\"context_length\": 64") && has(text, "\"adapters\": []") && has(text, "\"follows_model\": true"));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_append_chat(chat, "{}", &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_append_chat(chat, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_append_text(session, NULL, 3, 0, &error));
  peft_session_free(session), peft_session_free(chat), peft_model_free(model), peft_context_free(context);
}

TEST(limits) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = open_session(model, "{\"context_length\": 8, \"ignore_eos\": true}");
  int32_t token, ids[16];
  char piece[256];
  size_t needed;
  FAILS(PEFT_ERROR_STATE, peft_session_next(&token, piece, sizeof piece, &needed, session, &error)); /* nothing was read */
  CHECK(token == -1 && needed == 0);
  peft_tensors *logits = NULL;
  FAILS(PEFT_ERROR_STATE, peft_session_logits(&logits, session, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "96", peft_session_append(session, (int32_t[]){1, 96}, 2, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_append(session, (int32_t[]){-1}, 1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_append(session, NULL, 1, &error));
  OK(peft_session_append(session, NULL, 0, &error));
  const int32_t nine[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  FAILS(PEFT_ERROR_CONTEXT_FULL, peft_session_append(session, nine, 9, &error));
  OK(peft_session_tokens(ids, 16, &needed, session, &error));
  CHECK(needed == 0);
  OK(peft_session_append(session, nine, 6, &error));
  OK(peft_session_logits(&logits, session, &error));
  int64_t count;
  CHECK(floats(logits, "logits", &count) && count == 96);
  peft_tensors_free(logits);
  FAILS(PEFT_ERROR_CONTEXT_FULL, peft_session_generate(session, 10, NULL, NULL, &error));
  OK(peft_session_tokens(ids, 16, &needed, session, &error));
  CHECK(needed == 8); /* what was written stays */
  OK(peft_session_configure(session, "{\"on_full\": \"shift\", \"keep\": 2}", &error));
  OK(peft_session_generate(session, 10, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_generate(session, -1, NULL, NULL, &error));
  OK(peft_session_generate(session, 0, NULL, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "255", peft_session_next(&token, piece, 255, &needed, session, &error));
  OK(peft_session_next(&token, NULL, 0, NULL, session, &error)); /* no text wanted */
  OK(peft_session_next(NULL, NULL, 0, NULL, session, &error));
  CHECK(token >= 0);
  OK(peft_session_rewind(session, 3, &error));
  OK(peft_session_tokens(ids, 16, &needed, session, &error));
  CHECK(needed == 3);
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_rewind(session, 4, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_rewind(session, -1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_rewind(session, INT64_MIN, &error));
  OK(peft_session_rewind(session, 0, &error));
  FAILS(PEFT_ERROR_STATE, peft_session_generate(session, 1, NULL, NULL, &error));
  peft_session_free(session), peft_model_free(model), peft_context_free(context);
}

TEST(wrong_options_are_named) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = NULL;
  static const struct { const char *options, *part; } wrong[] = {
      {"{\"temprature\": 1}", "temprature"}, {"{\"temperature\": -1}", "temperature"}, {"{\"top_p\": 0}", "top_p"}, {"{\"top_k\": -1}", "top_k"},
      {"{\"context_length\": 65}", "64"}, {"{\"context_length\": 0}", "context_length"}, {"{\"on_full\": \"panic\"}", "panic"}, {"{\"stop\": 5}", "stop"},
      {"{\"repetition_penalty\": 0}", "repetition_penalty"}, {"{\"adapters\": {}}", "adapters"}, {"5", "number"}, {"", "empty"},
      {"{\"kv_cache_type\": \"q4_0\"}", "q8_0"}, {"{\"kv_cache_type\": 8}", "kv_cache_type"},
      {"{\"fold_adapters\": 1}", "fold_adapters"}};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    const int32_t code = peft_session_create(&session, model, wrong[i].options, &error);
    if (!CHECK(code == PEFT_ERROR_ARGUMENT && session == NULL && (i == 10 || strstr(error.message, wrong[i].part)))) printf("    for %s\n", wrong[i].options);
  }
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "ghost", peft_session_create(&session, model, "{\"adapters\": [\"ghost\"]}", &error));
  session = open_session(model, NULL);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "context_length", peft_session_configure(session, "{\"context_length\": 8}", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "top_p", peft_session_configure(session, "{\"top_p\": 7}", &error));
  OK(peft_session_configure(session, NULL, &error));
  peft_session_free(session), peft_model_free(model), peft_context_free(context);
}

/* Keys and values in blocks: other bits, nearly the same logits, the memory that the format says. */
TEST(keys_and_values_of_eight_bits) {
  peft_context *context = open_context(2);
  peft_model *model = open_model(context);
  peft_session *plain = open_session(model, "{\"kv_cache_type\": \"f32\"}"), *small = open_session(model, "{\"kv_cache_type\": \"q8_0\"}"), *copy = NULL;
  peft_tensors *expected = NULL, *got = NULL;
  const int32_t ids[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  for (int i = 0; i < 9; i++) OK(peft_session_append(small, ids + i, 1, &error)); /* one by one, and at once */
  OK(peft_session_append(plain, ids, 9, &error));
  OK(peft_session_logits(&expected, plain, &error));
  OK(peft_session_fork(&copy, small, &error));
  OK(peft_session_logits(&got, copy, &error));
  int64_t count;
  const float *x = floats(expected, "logits", &count), *y = floats(got, "logits", &count);
  double most = 0, largest = 0;
  for (int64_t i = 0; x && y && i < count; i++) most = fmax(most, fabs(x[i] - y[i])), largest = fmax(largest, fabs(x[i]));
  CHECK(most > 0 && most < 0.03 * largest);
  char text[2048];
  OK(peft_session_describe(text, sizeof text, NULL, copy, &error));
  CHECK(strstr(text, "\"kv_cache_type\": \"q8_0\"") != NULL);
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "kv_cache_type", peft_session_configure(small, "{\"kv_cache_type\": \"f32\"}", &error));
  peft_tensors_free(expected), peft_tensors_free(got);
  peft_session_free(plain), peft_session_free(small), peft_session_free(copy), peft_model_free(model), peft_context_free(context);
}

/* A stop string that the model is bound to write: of its greedy text. */
TEST(stop_strings_and_the_end) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = open_session(model, "{\"ignore_eos\": true}");
  OK(peft_session_append(session, prompt, 4, &error));
  reader whole = {.calls = 0};
  OK(peft_session_generate(session, 30, read_text, &whole, &error));
  if (CHECK(whole.size > 4)) {
    char options[128];
    snprintf(options, sizeof options, "{\"ignore_eos\": true, \"stop\": [\"%.2s\"]}", whole.text + whole.size / 2);
    if (!strpbrk(options + 30, "\\\n")) {
      peft_session *stopped = open_session(model, options);
      OK(peft_session_append(stopped, prompt, 4, &error));
      reader part = {.calls = 0};
      CHECK(peft_session_generate(stopped, 30, read_text, &part, &error) == PEFT_DONE);
      CHECK(part.size <= whole.size / 2 && memcmp(part.text, whole.text, part.size) == 0);
      peft_session_free(stopped);
    }
  }
  peft_session_free(session), peft_model_free(model), peft_context_free(context);
}

static int32_t look_inside(void *user_data, const char *text, size_t size) {
  reader *r = user_data;
  char description[512];
  peft_session *fork = NULL;
  (void)text, (void)size;
  r->inside[0] = peft_session_append(r->session, prompt, 1, NULL);
  r->inside[1] = peft_session_generate(r->session, 1, NULL, NULL, NULL);
  r->inside[2] = peft_session_describe(description, sizeof description, NULL, r->session, NULL);
  r->inside[3] = peft_session_fork(&fork, r->session, NULL);
  peft_session_free(fork);
  return 1;
}

TEST(callbacks_stop_look_and_do_not_touch) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = open_session(model, "{\"ignore_eos\": true}");
  OK(peft_session_append(session, prompt, 4, &error));
  reader r = {.stop_at = 2, .session = session};
  FAILS(PEFT_ERROR_CANCELLED, peft_session_generate(session, 40, read_text, &r, &error));
  CHECK(r.calls == 2);
  FAILS(PEFT_ERROR_CANCELLED, peft_session_generate(session, 40, look_inside, &r, &error));
  CHECK(r.inside[0] == PEFT_ERROR_STATE && r.inside[1] == PEFT_ERROR_STATE && r.inside[2] == PEFT_OK && r.inside[3] == PEFT_OK);
  OK(peft_session_generate(session, 5, NULL, NULL, &error));
  peft_session_free(session), peft_model_free(model), peft_context_free(context);
}

static void *cancel_soon(void *session) {
  usleep(20000);
  peft_session_cancel(session, NULL);
  return NULL;
}

TEST(another_thread_cancels) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = open_session(model, "{\"ignore_eos\": true, \"on_full\": \"shift\"}");
  OK(peft_session_append(session, prompt, 4, &error));
  pthread_t thread;
  pthread_create(&thread, NULL, cancel_soon, session);
  FAILS(PEFT_ERROR_CANCELLED, peft_session_generate(session, INT64_MAX, NULL, NULL, &error));
  pthread_join(thread, NULL);
  OK(peft_session_cancel(session, &error));
  FAILS(PEFT_ERROR_CANCELLED, peft_session_append(session, prompt, 4, &error));
  OK(peft_session_append(session, prompt, 4, &error));
  OK(peft_session_generate(session, 3, NULL, NULL, &error));
  peft_session_free(session), peft_model_free(model), peft_context_free(context);
}

/* The logits after the prompt, of a session that is read anew. */
static double distance(const peft_session *a, const peft_session *b) {
  peft_tensors *x = NULL, *y = NULL;
  OK(peft_session_logits(&x, a, &error));
  OK(peft_session_logits(&y, b, &error));
  const double d = difference(x, y, "logits");
  peft_tensors_free(x), peft_tensors_free(y);
  return d;
}

static void read_prompt(peft_session *session) {
  OK(peft_session_rewind(session, 0, &error));
  OK(peft_session_append(session, prompt, 4, &error));
}

TEST(adapters) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tensors *batch = make_batch(context);
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 3);
  OK(peft_adapter_add(model, "b", lora, NULL, &error));
  const char *a = "a", *b = "b";
  peft_session *follows = open_session(model, NULL), *base = open_session(model, "{\"adapters\": []}"), *own = open_session(model, "{\"adapters\": [\"a\"]}");
  read_prompt(follows), read_prompt(base), read_prompt(own);
  CHECK(distance(follows, own) == 0 && distance(base, own) > 0.01);
  /* One follows the model, the others keep what they have. */
  OK(peft_adapter_set_active(model, &b, NULL, 1, &error)); /* b is fresh: the base model */
  read_prompt(follows), read_prompt(own);
  CHECK(distance(follows, base) == 0 && distance(base, own) > 0.01);
  OK(peft_session_set_adapters(base, &a, NULL, 1, &error));
  read_prompt(base);
  CHECK(distance(base, own) == 0);
  OK(peft_session_set_adapters(base, &a, (float[]){0.5f}, 1, &error));
  read_prompt(base);
  CHECK(distance(base, own) > 1e-4);
  OK(peft_session_set_adapters(base, NULL, NULL, 0, &error));
  read_prompt(base);
  CHECK(distance(base, follows) == 0);
  char text[512];
  size_t needed;
  OK(peft_session_describe(text, sizeof text, &needed, own, &error));
  CHECK(has(text, "\"adapters\": [{\"name\": \"a\", \"weight\": 1.0}]") && has(text, "\"follows_model\": false"));
  FAILS_NAMING(PEFT_ERROR_NOT_FOUND, "ghost", peft_session_set_adapters(own, (const char *[]){"ghost"}, NULL, 1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_set_adapters(own, NULL, NULL, 1, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_session_set_adapters(own, &a, NULL, -1, &error));
  /* A removed adapter is an error of the session that still wants it. */
  OK(peft_adapter_remove(model, "a", &error));
  CHECK(peft_session_generate(own, 1, NULL, NULL, &error) == PEFT_ERROR_NOT_FOUND);
  OK(peft_session_set_adapters(own, NULL, NULL, 0, &error));
  CHECK(peft_session_generate(own, 1, NULL, NULL, &error) >= 0);
  peft_session_free(follows), peft_session_free(base), peft_session_free(own), peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

TEST(forks_go_their_own_way) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_session *session = open_session(model, "{\"ignore_eos\": true}"), *fork = NULL;
  OK(peft_session_append(session, prompt, 4, &error));
  OK(peft_session_fork(&fork, session, &error));
  CHECK(distance(session, fork) == 0);
  OK(peft_session_generate(fork, 10, NULL, NULL, &error));
  int32_t ids[64];
  size_t count;
  OK(peft_session_tokens(ids, 64, &count, session, &error));
  CHECK(count == 4);
  OK(peft_session_tokens(ids, 64, &count, fork, &error));
  CHECK(count == 14);
  peft_session_free(session);
  OK(peft_session_generate(fork, 1, NULL, NULL, &error));
  peft_session_free(fork), peft_model_free(model), peft_context_free(context);
}

static int32_t collect(void *user_data, int64_t index, const char *text, size_t size) {
  reader *readers = user_data;
  return read_text(&readers[index], text, size);
}

TEST(stepping_together_is_the_same_as_alone) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  peft_tensors *batch = make_batch(context);
  train_a_little(model, batch, 3);
  static const char *options[3] = {"{\"ignore_eos\": true}", "{\"ignore_eos\": true, \"adapters\": []}", "{\"ignore_eos\": true, \"temperature\": 1, \"seed\": 5}"};
  peft_session *together[3], *alone[3];
  reader readers[3], single[3];
  memset(readers, 0, sizeof readers), memset(single, 0, sizeof single);
  int32_t ids[64], tokens[3];
  size_t count;
  for (int i = 0; i < 3; i++) {
    together[i] = open_session(model, options[i]), alone[i] = open_session(model, options[i]);
    OK(peft_session_append(together[i], prompt, (size_t)i + 2, &error));
    OK(peft_session_append(alone[i], prompt, (size_t)i + 2, &error));
    OK(peft_session_generate(alone[i], 10, read_text, &single[i], &error));
  }
  for (int step = 0; step < 10; step++) OK(peft_sessions_next(tokens, together, 3, collect, readers, &error));
  for (int i = 0; i < 3; i++) {
    int32_t expected[64];
    size_t wanted;
    OK(peft_session_tokens(ids, 64, &count, together[i], &error));
    OK(peft_session_tokens(expected, 64, &wanted, alone[i], &error));
    CHECK(count == wanted && memcmp(ids, expected, count * sizeof ids[0]) == 0 && tokens[i] == ids[count - 1]);
    CHECK(readers[i].size <= single[i].size && memcmp(readers[i].text, single[i].text, readers[i].size) == 0);
  }
  FAILS(PEFT_ERROR_ARGUMENT, peft_sessions_next(tokens, together, 0, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_sessions_next(tokens, NULL, 3, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_sessions_next(tokens, together, INT64_MAX, NULL, NULL, &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "twice", peft_sessions_next(tokens, (peft_session *[]){alone[0], alone[0]}, 2, NULL, NULL, &error));
  OK(peft_sessions_next(NULL, together, 3, NULL, NULL, &error));
  for (int i = 0; i < 3; i++) peft_session_free(together[i]), peft_session_free(alone[i]);
  peft_tensors_free(batch), peft_model_free(model), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(pulling_and_pushing_give_the_same);
  RUN(text_and_chat);
  RUN(limits);
  RUN(wrong_options_are_named);
  RUN(keys_and_values_of_eight_bits);
  RUN(stop_strings_and_the_end);
  RUN(callbacks_stop_look_and_do_not_touch);
  RUN(another_thread_cancels);
  RUN(adapters);
  RUN(forks_go_their_own_way);
  RUN(stepping_together_is_the_same_as_alone);
  return finish();
}
