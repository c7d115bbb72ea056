/* What a C program holds that trains: the library and its memory without Python and numpy (some 30 MB), which engine.py's peaks have in them.
 *
 *     cc -O2 -Iinclude Benchmarks/memory.c -o build/memory -Lbuild -lpeftswift -Wl,-rpath,'$ORIGIN'
 *     build/memory MODEL [BUDGET_MB [false|true|auto]]       gradient_checkpointing; a budget of 0: none
 *
 * A LoRA (r = 8, all linear layers) takes four steps of 512 tokens in bf16. Printed: the most that was in memory at once (VmHWM), and of what is there in
 * the end the part that belongs to mapped files and can be dropped (RssFile). */
#include <peftswift.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { length = 512 };

/* A line of /proc/self/status, in MB. */
static long megabytes(const char *key) {
  char line[256];
  long kilobytes = 0;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file)) {
    if (strncmp(line, key, strlen(key)) == 0) kilobytes = atol(line + strlen(key) + 1);
  }
  if (file) fclose(file);
  return (kilobytes + 512) / 1024;
}

int main(int argc, char **argv) {
  if (argc < 2) return fprintf(stderr, "usage: %s MODEL [BUDGET_MB [false|true|auto]]\n", argv[0]), 2;
  peft_error error = PEFT_ERROR_INIT;
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  peft_model_options bf16 = PEFT_MODEL_OPTIONS_INIT;
  peft_context *context = NULL;
  peft_model *model = NULL;
  peft_trainer *trainer = NULL;
  peft_tensors *batch = NULL;
  peft_step step = PEFT_STEP_INIT;
  static int64_t ids[length];
  const int64_t shape[2] = {1, length};
  const char *const recompute = argc > 3 ? argv[3] : "false", *const quote = strcmp(recompute, "auto") == 0 ? "\"" : "";
  char trainer_json[128];
  snprintf(trainer_json, sizeof trainer_json, "{\"lr_scheduler\": \"constant\", \"gradient_checkpointing\": %s%s%s}", quote, recompute, quote);
  options.threads = 2;
  options.memory_budget = argc > 2 ? (uint64_t)strtoull(argv[2], NULL, 10) << 20 : 0;
  bf16.compute = PEFT_COMPUTE_BF16;
  for (int i = 0; i < length; i++) ids[i] = 100 + i * 37 % 31000;
  int failed = peft_context_create(&context, &options, &error) || peft_model_open(&model, context, argv[1], &bf16, &error) ||
               peft_adapter_add(model, "a", "{\"peft_type\": \"LORA\", \"target_modules\": \"all-linear\"}", NULL, &error) ||
               peft_trainer_create(&trainer, model, trainer_json, &error) || peft_tensors_create(&batch, context, &error) ||
               peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error) || peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error);
  for (int i = 0; i < 4 && !failed; i++) failed = peft_trainer_step(&step, trainer, batch, &error) != PEFT_OK;
  if (failed) return fprintf(stderr, "%s\n", error.message), 1;
  printf("peak %ld MB, of mapped files %ld MB\n", megabytes("VmHWM:"), megabytes("RssFile:"));
  peft_tensors_free(batch);
  peft_trainer_free(trainer);
  peft_model_free(model);
  peft_context_free(context);
  return 0;
}
