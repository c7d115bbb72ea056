/* Tokenizers: ids, text, chat templates. */
#include "fixtures.h"

static peft_tokenizer *open_tokenizer(const peft_context *context) {
  peft_tokenizer *tokenizer = NULL;
  OK(peft_tokenizer_open(&tokenizer, context, model_folder, &error));
  return tokenizer;
}

TEST(text_and_ids) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  int32_t ids[64];
  size_t needed;
  OK(peft_tokenizer_encode(NULL, 0, &needed, tokenizer, "the iron", SIZE_MAX, 1, &error));
  CHECK(needed > 3 && needed < 10);
  ids[needed - 1] = -7;
  OK(peft_tokenizer_encode(ids, needed - 1, &needed, tokenizer, "the iron", SIZE_MAX, 1, &error));
  CHECK(ids[needed - 1] == -7);
  OK(peft_tokenizer_encode(ids, 64, &needed, tokenizer, "the iron", SIZE_MAX, 1, &error));
  CHECK(ids[0] == 1);
  char text[64];
  size_t size;
  OK(peft_tokenizer_decode(text, sizeof text, &size, tokenizer, ids, needed, 1, &error));
  CHECK(size == 8 && strcmp(text, "the iron") == 0);
  OK(peft_tokenizer_decode(text, sizeof text, &size, tokenizer, ids, needed, 0, &error));
  CHECK(strcmp(text, "<bos>the iron") == 0);
  /* Sizes: a NUL inside, part of the text, none. */
  OK(peft_tokenizer_encode(ids, 64, &needed, tokenizer, "a\0b", 3, 0, &error));
  CHECK(needed == 3);
  OK(peft_tokenizer_encode(ids, 64, &needed, tokenizer, "abc", 2, 0, &error));
  CHECK(needed == 2);
  OK(peft_tokenizer_encode(ids, 64, &needed, tokenizer, NULL, 0, 0, &error));
  CHECK(needed == 0);
  OK(peft_tokenizer_decode(text, sizeof text, &size, tokenizer, NULL, 0, 0, &error));
  CHECK(size == 0 && text[0] == 0);
  /* Invalid UTF-8 is read, not refused. */
  OK(peft_tokenizer_encode(ids, 64, &needed, tokenizer, "a\xff\xc3", 3, 0, &error));
  CHECK(needed >= 2);
  peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(wrong_ids_and_sizes) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  size_t needed = 99;
  int32_t wrong[2] = {1, 96};
  char text[16];
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "96", peft_tokenizer_decode(text, sizeof text, &needed, tokenizer, wrong, 2, 0, &error));
  CHECK(needed == 0 && error.detail == 96);
  wrong[1] = -1;
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_decode(text, sizeof text, &needed, tokenizer, wrong, 2, 0, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_decode(text, sizeof text, &needed, tokenizer, NULL, 2, 0, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_decode(text, sizeof text, &needed, tokenizer, wrong, SIZE_MAX, 0, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_encode(NULL, 0, &needed, tokenizer, NULL, 1, 0, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_encode(NULL, 0, &needed, tokenizer, "a", SIZE_MAX - 1, 0, &error));
  peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(chat) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  char text[256];
  size_t needed;
  const char *messages = "[{\"role\": \"user\", \"content\": \"who\"}]";
  OK(peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, messages, NULL, &error));
  CHECK(strcmp(text, "<bos><|im_start|>user\nwho<|im_end|>\n<|im_start|>assistant\n") == 0);
  OK(peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, messages, "{\"add_generation_prompt\": false}", &error));
  CHECK(strcmp(text, "<bos><|im_start|>user\nwho<|im_end|>\n") == 0);
  OK(peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, messages, "{\"chat_template\": \"{{ mood }}: {{ messages[0].content }}\", \"mood\": \"grim\"}", &error));
  CHECK(strcmp(text, "grim: who") == 0);
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, "{}", NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, "[1]", NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, "[{", NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, messages, "[]", &error));
  FAILS_NAMING(PEFT_ERROR_ARGUMENT, "add_generation_prompt",
               peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, messages, "{\"add_generation_prompt\": 3}", &error));
  CHECK(peft_tokenizer_chat(text, sizeof text, &needed, tokenizer, messages, "{\"chat_template\": \"{% while %}\"}", &error) < 0);
  peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(describing) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  char text[512];
  size_t needed;
  OK(peft_tokenizer_describe(text, sizeof text, &needed, tokenizer, &error));
  CHECK(has(text, "\"vocabulary_size\": 96") && has(text, "\"bos_token_id\": 1") && has(text, "\"eos_token_id\": 2") && has(text, "\"chat_template\": true"));
  peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(opening) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = NULL;
  OK(peft_tokenizer_open(&tokenizer, context, MODEL_FILE("tokenizer.json"), &error));
  peft_tokenizer_free(tokenizer);
  FAILS(PEFT_ERROR_NOT_FOUND, peft_tokenizer_open(&tokenizer, context, SCRATCH("nowhere"), &error));
  CHECK(tokenizer == NULL);
  FAILS(PEFT_ERROR_NOT_FOUND, peft_tokenizer_open(&tokenizer, context, scratch_folder, &error));
  FAILS(PEFT_ERROR_FORMAT, peft_tokenizer_open(&tokenizer, context, MODEL_FILE("model.safetensors"), &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tokenizer_open(&tokenizer, context, NULL, &error));
  /* It outlives the model and the context it came from. */
  peft_model *model = open_model(context);
  OK(peft_model_tokenizer(&tokenizer, model, &error));
  peft_model_free(model), peft_context_free(context);
  size_t needed;
  OK(peft_tokenizer_encode(NULL, 0, &needed, tokenizer, "iron", SIZE_MAX, 0, &error));
  CHECK(needed > 0);
  peft_tokenizer_free(tokenizer);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(text_and_ids);
  RUN(wrong_ids_and_sizes);
  RUN(chat);
  RUN(describing);
  RUN(opening);
  return finish();
}
