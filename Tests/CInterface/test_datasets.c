/* Data sets: formats, options, batches, positions. */
#include "fixtures.h"

static const char lines[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"who\"}, {\"role\": \"assistant\", \"content\": \"the smith\"}]}\n"
    "{\"prompt\": \"an\", \"completion\": \" anvil\"}\n"
    "{\"text\": \"iron\"}\n";

static peft_dataset *open_data(const peft_tokenizer *tokenizer, const char *text, const char *options) {
  peft_dataset *dataset = NULL;
  OK(peft_dataset_open_memory(&dataset, tokenizer, text, SIZE_MAX, options, &error));
  return dataset;
}

static peft_tokenizer *open_tokenizer(const peft_context *context) {
  peft_tokenizer *tokenizer = NULL;
  OK(peft_tokenizer_open(&tokenizer, context, model_folder, &error));
  return tokenizer;
}

TEST(batches) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  peft_dataset *dataset = open_data(tokenizer, lines, "{\"format\": \"jsonl\", \"batch_size\": 2, \"shuffle\": false, \"max_length\": 64}");
  char text[512];
  size_t needed;
  OK(peft_dataset_describe(text, sizeof text, &needed, dataset, &error));
  CHECK(has(text, "\"records\": 3") && has(text, "\"batches_per_epoch\": 2") && has(text, "\"epoch\": 0") && has(text, "\"skipped_lines\": 0"));
  peft_tensors *batch = NULL;
  OK(peft_dataset_next(&batch, dataset, &error));
  peft_array ids = PEFT_ARRAY_INIT, labels = PEFT_ARRAY_INIT, mask = PEFT_ARRAY_INIT;
  OK(peft_tensors_get(&ids, batch, "input_ids", &error));
  OK(peft_tensors_get(&labels, batch, "labels", &error));
  OK(peft_tensors_get(&mask, batch, "attention_mask", &error));
  CHECK(ids.type == PEFT_I64 && ids.rank == 2 && ids.shape[0] == 2 && labels.shape[1] == ids.shape[1] && mask.shape[1] == ids.shape[1]);
  /* Of the question nothing is learned; the shorter row is filled up. */
  const int64_t *id = ids.data, *label = labels.data, *token = mask.data;
  const int64_t length = ids.shape[1];
  CHECK(id[0] == 1 && label[0] == -100 && token[0] == 1 && label[length - 2] != -100);
  CHECK(token[2 * length - 1] == 0 && label[2 * length - 1] == -100);
  peft_tensors_free(batch);
  OK(peft_dataset_next(&batch, dataset, &error));
  peft_tensors_free(batch);
  CHECK(peft_dataset_next(&batch, dataset, &error) == PEFT_DONE && batch == NULL);
  OK(peft_dataset_next(&batch, dataset, &error));
  OK(peft_dataset_describe(text, sizeof text, &needed, dataset, &error));
  CHECK(has(text, "\"epoch\": 1"));
  peft_tensors_free(batch), peft_dataset_free(dataset), peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(packed_batches_go_into_a_model) {
  peft_context *context = open_context(1);
  peft_model *model = open_model(context);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  peft_dataset *dataset = open_data(tokenizer, lines, "{\"format\": \"jsonl\", \"packing\": true, \"max_length\": 64}");
  peft_tensors *batch = NULL;
  OK(peft_dataset_next(&batch, dataset, &error));
  peft_array first = PEFT_ARRAY_INIT;
  OK(peft_tensors_get(&first, batch, "first_key", &error));
  OK(peft_tensors_get(&first, batch, "position_ids", &error));
  peft_tensors *outputs = run_forward(model, batch);
  int64_t count;
  CHECK(floats(outputs, "loss", &count) && count == 1);
  peft_tensors_free(outputs), peft_tensors_free(batch), peft_dataset_free(dataset), peft_tokenizer_free(tokenizer);
  peft_model_free(model), peft_context_free(context);
}

TEST(files) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  static const char *names[3] = {"conversations.jsonl", "table.csv", "story.txt"};
  for (int i = 0; i < 3; i++) {
    peft_dataset *dataset = NULL;
    peft_tensors *batch = NULL;
    OK(peft_dataset_open(&dataset, tokenizer, MODEL_FILE(names[i]), "{\"max_length\": 48}", &error));
    OK(peft_dataset_next(&batch, dataset, &error));
    peft_tensors_free(batch), peft_dataset_free(dataset);
  }
  peft_dataset *dataset = NULL;
  FAILS(PEFT_ERROR_NOT_FOUND, peft_dataset_open(&dataset, tokenizer, SCRATCH("nowhere.jsonl"), NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_dataset_open(&dataset, tokenizer, NULL, NULL, &error));
  CHECK(peft_dataset_open(&dataset, tokenizer, scratch_folder, NULL, &error) < 0 && dataset == NULL);
  peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(parts) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  peft_dataset *training = NULL, *held = NULL;
  char text[512];
  size_t needed;
  OK(peft_dataset_open(&training, tokenizer, MODEL_FILE("conversations.jsonl"), "{\"holdout\": 0.34, \"split\": \"train\"}", &error));
  OK(peft_dataset_open(&held, tokenizer, MODEL_FILE("conversations.jsonl"), "{\"holdout\": 0.34, \"split\": \"holdout\"}", &error));
  OK(peft_dataset_describe(text, sizeof text, &needed, training, &error));
  CHECK(has(text, "\"records\": 4"));
  OK(peft_dataset_describe(text, sizeof text, &needed, held, &error));
  CHECK(has(text, "\"records\": 2"));
  peft_dataset_free(training), peft_dataset_free(held), peft_tokenizer_free(tokenizer), peft_context_free(context);
}

TEST(wrong_options_and_lines) {
  peft_context *context = open_context(1);
  peft_tokenizer *tokenizer = open_tokenizer(context);
  peft_dataset *dataset = NULL;
  static const struct { const char *options, *part; } wrong[] = {
      {"{\"max_len\": 3}", "max_len"}, {"{\"max_length\": 1}", "max_length"}, {"{\"batch_size\": 0}", "batch_size"}, {"{\"batch_size\": \"two\"}", "batch_size"},
      {"{\"split\": \"test\"}", "split"}, {"{\"split\": \"holdout\"}", "holdout"}, {"{\"holdout\": 2}", "holdout"}, {"{\"format\": \"xml\"}", "xml"},
      {"{\"loss_on\": 3}", "loss_on"}, {"[]", "array"}, {"{", "JSON"}, {"{\"seed\": -1}", "seed"}, {"{\"chat_template\": 5}", "chat_template"}};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    const int32_t code = peft_dataset_open_memory(&dataset, tokenizer, lines, SIZE_MAX, wrong[i].options, &error);
    if (!CHECK(code == PEFT_ERROR_ARGUMENT && dataset == NULL && strstr(error.message, wrong[i].part))) printf("    for %s\n", wrong[i].options);
  }
  FAILS(PEFT_ERROR_ARGUMENT, peft_dataset_open_memory(&dataset, tokenizer, NULL, 5, NULL, &error));
  FAILS(PEFT_ERROR_FORMAT, peft_dataset_open_memory(&dataset, tokenizer, "", 0, "{\"format\": \"jsonl\"}", &error));
  const char *bad = "{\"text\": \"iron\"}\n{\"text\": 5}\n{\"nothing\": 1}\n";
  FAILS_NAMING(PEFT_ERROR_FORMAT, "2", peft_dataset_open_memory(&dataset, tokenizer, bad, SIZE_MAX, "{\"format\": \"jsonl\"}", &error));
  dataset = open_data(tokenizer, bad, "{\"format\": \"jsonl\", \"on_bad_line\": \"skip\"}");
  char text[512];
  size_t needed;
  OK(peft_dataset_describe(text, sizeof text, &needed, dataset, &error));
  CHECK(has(text, "\"records\": 1") && has(text, "\"skipped_lines\": 2"));
  peft_dataset_free(dataset), peft_tokenizer_free(tokenizer), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(batches);
  RUN(packed_batches_go_into_a_model);
  RUN(files);
  RUN(parts);
  RUN(wrong_options_and_lines);
  return finish();
}
