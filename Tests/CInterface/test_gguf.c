/* GGUF images: from memory and from a file, plain and quantised; training and merging over quantised weights; images that are cut short. */
#include "gguf.h"

static double relative_difference(const peft_tensors *a, const peft_tensors *b) {
  int64_t count;
  const float *x = floats(a, "logits", &count), *y = floats(b, "logits", &count);
  double most = 0, largest = 0;
  for (int64_t i = 0; x && y && i < count; i++) most = fmax(most, fabs((double)x[i] - y[i])), largest = fmax(largest, fabs((double)y[i]));
  return largest > 0 ? most / largest : NAN;
}

TEST(the_same_model_as_the_folder) {
  peft_context *context = open_context(1);
  peft_model *folder = open_model(context);
  peft_model_options options = PEFT_MODEL_OPTIONS_INIT;
  options.compute = PEFT_COMPUTE_F32;
  peft_tensors *batch = make_batch(context), *expected = run_forward(folder, batch);
  for (int quantised = 0; quantised < 2; quantised++) {
    image file = make_gguf(folder, quantised);
    FILE *disk = fopen(SCRATCH("model.gguf"), "wb");
    CHECK(disk && fwrite(file.bytes, 1, file.size, disk) == file.size && fclose(disk) == 0);
    peft_model *memory = NULL, *mapped = NULL;
    OK(peft_model_open_memory(&memory, context, file.bytes, file.size, &options, &error));
    OK(peft_model_open(&mapped, context, SCRATCH("model.gguf"), &options, &error));
    peft_tensors *a = run_forward(memory, batch), *b = run_forward(mapped, batch);
    CHECK(relative_difference(a, b) == 0);
    CHECK(relative_difference(a, expected) < (quantised ? 0.05 : 1e-5));
    peft_tokenizer *tokenizer = NULL;
    FAILS(PEFT_ERROR_NOT_FOUND, peft_model_tokenizer(&tokenizer, memory, &error));
    FAILS(PEFT_ERROR_NOT_FOUND, peft_tokenizer_open(&tokenizer, context, SCRATCH("model.gguf"), &error));
    peft_session *session = NULL;
    OK(peft_session_create(&session, memory, NULL, &error));
    FAILS_NAMING(PEFT_ERROR_STATE, "tokenizer", peft_session_append_text(session, "iron", SIZE_MAX, 0, &error));
    OK(peft_session_append(session, (int32_t[]){1, 7}, 2, &error));
    OK(peft_session_generate(session, 5, NULL, NULL, &error));
    peft_session_free(session), peft_tensors_free(a), peft_tensors_free(b), peft_model_free(memory), peft_model_free(mapped);
    free(file.bytes);
  }
  peft_tensors_free(expected), peft_tensors_free(batch), peft_model_free(folder), peft_context_free(context);
}

TEST(adapters_over_quantised_weights) {
  peft_context *context = open_context(1);
  peft_model *folder = open_model(context), *model = NULL;
  image file = make_gguf(folder, 1);
  peft_model_options options = PEFT_MODEL_OPTIONS_INIT;
  options.compute = PEFT_COMPUTE_F32;
  OK(peft_model_open_memory(&model, context, file.bytes, file.size, &options, &error));
  peft_tensors *batch = make_batch(context), *base = run_forward(model, batch);
  char text[8192];
  OK(peft_model_describe(text, sizeof text, NULL, model, &error));
  CHECK(has(text, "\"q8_0\": "));
  OK(peft_adapter_add(model, "a", lora, NULL, &error));
  train_a_little(model, batch, 4);
  peft_tensors *adapted = run_forward(model, batch);
  CHECK(relative_difference(adapted, base) > 0.01);
  OK(peft_model_merge(text, sizeof text, NULL, model, NULL, 0, NULL, &error));
  CHECK(has(text, "\"kept\""));
  peft_tensors *merged = run_forward(model, batch);
  CHECK(relative_difference(merged, adapted) < relative_difference(base, adapted));
  OK(peft_model_unmerge(model, &error));
  OK(peft_adapter_set_enabled(model, 0, &error));
  peft_tensors *again = run_forward(model, batch);
  CHECK(relative_difference(again, base) == 0);
  peft_tensors_free(again), peft_tensors_free(merged), peft_tensors_free(adapted), peft_tensors_free(base), peft_tensors_free(batch);
  peft_model_free(model), peft_model_free(folder), peft_context_free(context);
  free(file.bytes);
}

/* Cut short anywhere, or a byte of the header changed: an error that says something, never more. */
TEST(damaged_images) {
  peft_context *context = open_context(1);
  peft_model *folder = open_model(context), *model = NULL;
  image file = make_gguf(folder, 1);
  size_t header = 0;
  while (header < file.size && memcmp(file.bytes + header, "token_embd", 10) != 0) header++;
  for (size_t size = 0; size < file.size; size += size < header + 2000 ? 7 : 4001) {
    unsigned char *cut = malloc(size ? size : 1); /* exactly as large, so that a tool sees a read behind it */
    memcpy(cut, file.bytes, size);
    if (!CHECK(peft_model_open_memory(&model, context, cut, size, NULL, &error) < 0 && model == NULL && error.message[0])) printf("    cut to %d bytes\n", (int)size);
    free(cut);
  }
  unsigned char *changed = malloc(file.size);
  for (size_t place = 0; place < header + 1500; place += 3) {
    memcpy(changed, file.bytes, file.size);
    changed[place] ^= (unsigned char)(1u << place % 8 | 0x80u);
    const int32_t code = peft_model_open_memory(&model, context, changed, file.size, NULL, &error);
    if (!CHECK(code != PEFT_ERROR_INTERNAL && (code == PEFT_OK) == (model != NULL))) printf("    byte %d changed\n", (int)place);
    if (code == PEFT_OK) {
      /* Not noticed (a name nobody asks for): it must still be a model. */
      peft_tensors *batch = make_batch(context), *outputs = NULL;
      const int32_t runs = peft_model_forward(&outputs, model, batch, NULL, &error);
      CHECK(runs == PEFT_OK || error.message[0]);
      peft_tensors_free(outputs), peft_tensors_free(batch);
    }
    peft_model_free(model);
  }
  free(changed), free(file.bytes), peft_model_free(folder), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(the_same_model_as_the_folder);
  RUN(adapters_over_quantised_weights);
  RUN(damaged_images);
  return finish();
}
