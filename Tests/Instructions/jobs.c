/* Fixed jobs whose instructions are counted (run.sh):  jobs JOB MODEL_FOLDER EMPTY_FOLDER
 * One thread, AVX2 (what valgrind knows). A job repeats what is counted, so that opening the model is a small part. */
#include <peftswift.h>
#include <stdio.h>
#include <string.h>

static peft_error error = PEFT_ERROR_INIT;
static peft_context *context;
static peft_model *model;
static const char *folder;

static const char lora[] = "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": \"all-linear\"}";
static const char dora[] = "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": \"all-linear\", \"use_dora\": true}";

static int32_t ignore(void *user_data, const char *text, size_t size) { return (void)user_data, (void)text, (void)size, 0; }

static int train(const char *config) {
  int64_t ids[64], shape[2] = {2, 32};
  peft_tensors *batch = NULL;
  peft_trainer *trainer = NULL;
  peft_step step = PEFT_STEP_INIT;
  for (int i = 0; i < 64; i++) ids[i] = 1 + i * 7 % 50;
  if (peft_adapter_add(model, "a", config, NULL, &error) || peft_tensors_create(&batch, context, &error) ||
      peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error) || peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error) ||
      peft_trainer_create(&trainer, model, "{\"lr\": 0.001, \"lr_scheduler\": \"constant\"}", &error)) {
    return 1;
  }
  int failed = 0;
  for (int i = 0; i < 20 && !failed; i++) failed = peft_trainer_step(&step, trainer, batch, &error) != PEFT_OK;
  peft_trainer_free(trainer);
  peft_tensors_free(batch);
  return failed;
}

static int generate(void) {
  static const int32_t prompt[4] = {1, 5, 9, 13};
  peft_session *session = NULL;
  int failed = peft_session_create(&session, model, "{\"ignore_eos\": true}", &error) ||
               peft_session_append(session, prompt, 4, &error) || peft_session_generate(session, 50, ignore, NULL, &error);
  peft_session_free(session);
  return failed;
}

static int files(void) {
  if (peft_adapter_add(model, "a", lora, NULL, &error) || peft_adapter_save(model, "a", folder, &error)) return 1;
  for (int i = 0; i < 20; i++) {
    if (peft_adapter_load(model, "b", folder, 0, &error) || peft_adapter_remove(model, "b", &error)) return 1;
  }
  return 0;
}

static int merge(void) {
  if (peft_adapter_add(model, "a", dora, NULL, &error)) return 1;
  for (int i = 0; i < 20; i++) {
    size_t needed;
    if (peft_model_merge(NULL, 0, &needed, model, NULL, 0, NULL, &error) || peft_model_unmerge(model, &error)) return 1;
  }
  return 0;
}

int main(int argc, char **argv) {
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 1, options.level = PEFT_LEVEL_AVX2;
  if (argc != 4) return fprintf(stderr, "usage: %s JOB MODEL_FOLDER EMPTY_FOLDER\n", argv[0]), 2;
  folder = argv[3];
  int failed = peft_context_create(&context, &options, &error) || peft_model_open(&model, context, argv[2], NULL, &error);
  if (!failed) {
    const char *job = argv[1];
    failed = !strcmp(job, "open") ? 0 : !strcmp(job, "train") ? train(lora) : !strcmp(job, "train_dora") ? train(dora) : !strcmp(job, "generate") ? generate()
           : !strcmp(job, "files") ? files() : !strcmp(job, "merge") ? merge() : 2;
  }
  if (failed) fprintf(stderr, "%s: %s\n", argv[1], error.message);
  peft_model_free(model);
  peft_context_free(context);
  return failed;
}
