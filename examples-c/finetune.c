/* Fine-tunes a model on a file of text and saves what it learned as a PEFT folder:
 *
 *     finetune --model model.gguf --data blacksmith.jsonl --out blacksmith
 *
 * The data: JSON lines with "messages" (a chat; the loss is on the assistant's words), "prompt"/"completion" or "text"; CSV; plain text.
 * Ctrl-C stops after the present step, and what was learned until then is saved. */
#include <math.h>
#include <peftswift.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const usage =
    "usage: finetune --model PATH --data FILE --out FOLDER [options]\n"
    "  --heldout FILE    text to judge by, before and after\n"
    "  --rank N          rank of the adapter (8)          --alpha N      its scale (2 x rank)\n"
    "  --epochs N        rounds through the data (3)      --steps N      or: so many steps\n"
    "  --lr X            learning rate (1e-3)             --batch N      samples in a step (4)\n"
    "  --dropout X       of the adapter's input (0)\n"
    "  --length N        longest sample in tokens (512)   --packing      fill samples up to that length\n"
    "  --memory MB       limit for everything but the model file\n"
    "  --threads N       processors to use (all)          --seed N       (0)\n";

typedef struct options {
  const char *model, *data, *heldout, *out;
  int rank, epochs, steps, batch, length, packing, memory, threads, seed;
  double alpha, lr, dropout;
} options;

/* Fills in `o` from the command line; returns what is wrong with it, or NULL. */
static const char *parse(options *o, int argc, char **argv) {
  *o = (options){.rank = 8, .epochs = 3, .batch = 4, .length = 512, .lr = 1e-3};
  const struct { const char *name; const char **text; int *whole; double *real; } known[] = {
      {"--model", &o->model, NULL, NULL},  {"--data", &o->data, NULL, NULL},    {"--heldout", &o->heldout, NULL, NULL}, {"--out", &o->out, NULL, NULL},
      {"--rank", NULL, &o->rank, NULL},    {"--epochs", NULL, &o->epochs, NULL}, {"--steps", NULL, &o->steps, NULL},     {"--batch", NULL, &o->batch, NULL},
      {"--length", NULL, &o->length, NULL}, {"--memory", NULL, &o->memory, NULL}, {"--threads", NULL, &o->threads, NULL}, {"--seed", NULL, &o->seed, NULL},
      {"--alpha", NULL, NULL, &o->alpha},  {"--lr", NULL, NULL, &o->lr},        {"--dropout", NULL, NULL, &o->dropout},
  };
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--packing") == 0) {
      o->packing = 1;
      continue;
    }
    size_t k = 0, count = sizeof known / sizeof *known;
    while (k < count && strcmp(argv[i], known[k].name) != 0) k++;
    if (k == count || i + 1 == argc) return argv[i];
    char *value = argv[++i], *end = value + strlen(value), *stop = end;
    if (known[k].text) *known[k].text = value;
    if (known[k].whole) *known[k].whole = (int)strtol(value, &stop, 10);
    if (known[k].real) *known[k].real = strtod(value, &stop);
    if (stop != end) return value;
  }
  if (o->alpha == 0) o->alpha = 2 * o->rank;
  return !o->model ? "--model is missing" : !o->data ? "--data is missing" : !o->out ? "--out is missing" : NULL;
}

/* The number behind a key in a JSON text of the library. */
static double number(const char *json, const char *key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\":", key);
  const char *place = strstr(json, quoted);
  return place ? strtod(place + strlen(quoted), NULL) : 0;
}

static volatile sig_atomic_t is_interrupted;
static void interrupt(int signal) {
  (void)signal;
  is_interrupted = 1;
}

/* A line that renews itself: bar, loss, speed, memory, time left. */
static int32_t show(void *user_data, const peft_training_progress *p) {
  double *shown = user_data;
  int is_last = p->step == p->total_steps;
  if (p->seconds - *shown < 0.2 && !is_last && !is_interrupted) return 0;
  *shown = p->seconds;
  int done = p->total_steps > 0 ? (int)(24 * p->step / p->total_steps) : 0, left = (int)(p->seconds_left + 0.5);
  fprintf(stderr, "\r  [%.*s%.*s] step %lld/%lld   loss %.3f   %.0f tok/s   %.0f MB   %d:%02d left  ", done, "########################", 24 - done,
          "........................", (long long)p->step, (long long)p->total_steps, p->loss, p->tokens_per_second, (double)p->memory_peak / 1e6, left / 60, left % 60);
  if (is_last || is_interrupted) fputc('\n', stderr);
  return is_interrupted;
}

/* Loss on the held-out text. */
static int32_t judge(peft_trainer *trainer, peft_dataset *heldout, const char *when, peft_error *error) {
  double loss = 0;
  int32_t code = heldout ? peft_trainer_evaluate(&loss, trainer, heldout, error) : PEFT_OK;
  if (heldout && code >= 0) printf("  held-out loss %s: %.3f (perplexity %.1f)\n", when, loss, exp(loss));
  fflush(stdout);
  return code;
}

static int32_t finetune(const options *o, peft_context *context, peft_error *error) {
  char text[512];
  static char status[1 << 16];
  size_t size;
  peft_model *model = NULL;
  peft_tokenizer *tokenizer = NULL;
  peft_dataset *data = NULL, *heldout = NULL;
  peft_trainer *trainer = NULL;
  int32_t code;

  if ((code = peft_model_open(&model, context, o->model, NULL, error)) < 0) goto end;
  snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": %g, \"lora_dropout\": %g, \"target_modules\": \"all-linear\", \"task_type\": \"CAUSAL_LM\"}",
           o->rank, o->alpha, o->dropout);
  if ((code = peft_adapter_add(model, "default", text, NULL, error)) < 0) goto end;
  if ((code = peft_adapter_status(status, sizeof status, &size, model, error)) < 0) goto end;
  double trainable = number(status, "trainable_parameters"), all = number(status, "all_parameters");
  printf("  LoRA of rank %d: %.2f million of %.1f million parameters learn (%.1f %%)\n", o->rank, trainable / 1e6, all / 1e6, 100 * trainable / all);

  if ((code = peft_model_tokenizer(&tokenizer, model, error)) < 0) goto end;
  snprintf(text, sizeof text, "{\"batch_size\": %d, \"max_length\": %d, \"packing\": %s, \"seed\": %d}", o->batch, o->length, o->packing ? "true" : "false", o->seed);
  if ((code = peft_dataset_open(&data, tokenizer, o->data, text, error)) < 0) goto end;
  if (o->heldout && (code = peft_dataset_open(&heldout, tokenizer, o->heldout, text, error)) < 0) goto end;

  int length = snprintf(text, sizeof text, "{\"lr\": %g, \"lr_scheduler\": \"cosine\", \"warmup_steps\": 5, \"seed\": %d, ", o->lr, o->seed);
  snprintf(text + length, sizeof text - (size_t)length, o->steps ? "\"max_steps\": %d}" : "\"epochs\": %d}", o->steps ? o->steps : o->epochs);
  if ((code = peft_trainer_create(&trainer, model, text, error)) < 0) goto end;

  if ((code = judge(trainer, heldout, "before", error)) < 0) goto end;
  double shown = -1;
  code = peft_trainer_run(trainer, data, NULL, show, &shown, error);
  if (code == PEFT_ERROR_CANCELLED) puts("  stopped; what was learned so far is kept");
  else if (code < 0) goto end;
  if ((code = judge(trainer, heldout, "after ", error)) < 0) goto end;

  if ((code = peft_adapter_save(model, "default", o->out, error)) < 0) goto end;
  printf("  saved to %s (a PEFT folder: adapter_config.json, adapter_model.safetensors)\n", o->out);

end:
  peft_trainer_free(trainer);
  peft_dataset_free(heldout);
  peft_dataset_free(data);
  peft_tokenizer_free(tokenizer);
  peft_model_free(model);
  return code;
}

int main(int argc, char **argv) {
  options o;
  const char *problem = parse(&o, argc, argv);
  if (problem) return fprintf(stderr, "finetune: %s\n%s", problem, usage), 2;
  signal(SIGINT, interrupt);

  peft_error error = PEFT_ERROR_INIT;
  peft_context_options settings = PEFT_CONTEXT_OPTIONS_INIT;
  settings.threads = o.threads;
  settings.memory_budget = (uint64_t)o.memory * 1000000;
  peft_context *context = NULL;
  int32_t code = peft_context_create(&context, &settings, &error);
  if (code >= 0) code = finetune(&o, context, &error);
  peft_context_free(context);
  if (code < 0) fprintf(stderr, "finetune: %s: %s\n", peft_status_text(code), error.message);
  return code < 0;
}
