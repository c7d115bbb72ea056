/* Adapters become one:
 *
 *     merge --out both smith=0.7 pirate=0.5                 LoRA folders; no model is needed
 *     merge --out both --type ties --density 0.5 a b c
 *     merge --out small --rank 4 smith                      a smaller one of one
 *     merge --out less smith pirate=-1                      what one knows and the other does not
 *     merge --out both --model model.gguf smith oft-folder  any methods, through their changes of the weights
 *     merge --compare smith pirate                          how alike two are
 *
 * A weight stands behind the folder's name; it is 1 where there is none. */
#include <peftswift.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ADAPTERS = 64, REPORT = 1 << 20 };

static const char *const usage =
    "usage: merge --out FOLDER [options] ADAPTER[=WEIGHT]…\n"
    "       merge --compare ADAPTER ADAPTER\n"
    "  --type NAME       svd, cat, linear, ties, dare_ties_svd, della, breadcrumbs, slerp … (svd; cat without --rank)\n"
    "  --rank N          of the result\n"
    "  --energy X        instead: what share of the change every layer keeps\n"
    "  --density X       the share that pruning leaves\n"
    "  --model PATH      combine over this model: adapters may be of any method\n";

typedef struct options {
  const char *out, *type, *rank, *energy, *density, *model;
  const char *adapters[MAX_ADAPTERS];
  float weights[MAX_ADAPTERS];
  int count, compares;
} options;

static const char *parse(options *o, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *const names[] = {"--out", "--type", "--rank", "--energy", "--density", "--model"};
    const char **const values[] = {&o->out, &o->type, &o->rank, &o->energy, &o->density, &o->model};
    size_t known = 0;
    while (known < 6 && strcmp(argv[i], names[known])) known++;
    if (known < 6) {
      if (i + 1 == argc) return argv[i];
      *values[known] = argv[++i];
    } else if (strcmp(argv[i], "--compare") == 0) {
      o->compares = 1;
    } else if (argv[i][0] == '-' || o->count == MAX_ADAPTERS) {
      return argv[i];
    } else {
      char *equals = strrchr(argv[i], '=');
      if (equals) *equals = 0;
      o->weights[o->count] = equals ? strtof(equals + 1, NULL) : 1;
      o->adapters[o->count++] = argv[i];
    }
  }
  if (o->compares) return o->count == 2 ? NULL : "--compare wants two adapters";
  return !o->out ? "--out is missing" : o->count ? NULL : "no adapter is named";
}

static int32_t show_progress(void *user_data, int64_t done, int64_t total) {
  (void)user_data;
  fprintf(stderr, "\r%lld of %lld layers%s", (long long)done, (long long)total, done == total ? "\n" : "");
  return 0; /* non-zero stops */
}

/* The options as JSON; numbers are checked by the library. */
static void write_json(const options *o, char *json, size_t size) {
  const int is_short = !o->rank && !o->energy;
  snprintf(json, size, "{\"combination_type\": \"%s\", \"svd_rank\": %s, \"svd_energy\": %s, \"density\": %s}", o->type ? o->type : is_short ? "cat" : "svd",
           o->rank ? o->rank : "null", o->energy ? o->energy : "null", o->density ? o->density : "null");
}

/* Over a model: its adapters are loaded under their folders' names. */
static int32_t combine_over_model(const options *o, const char *json, char *report, peft_context *context, peft_error *error) {
  peft_model *model;
  int32_t code = peft_model_open(&model, context, o->model, NULL, error);
  for (int i = 0; code == PEFT_OK && i < o->count; i++) code = peft_adapter_load(model, o->adapters[i], o->adapters[i], 0, error);
  if (code == PEFT_OK) code = peft_adapter_combine(report, REPORT, NULL, model, o->out, o->adapters, o->weights, o->count, json, show_progress, NULL, error);
  if (code == PEFT_OK) code = peft_adapter_save(model, o->out, o->out, error);
  peft_model_free(model);
  return code;
}

int main(int argc, char **argv) {
  options o = {0};
  const char *wrong = parse(&o, argc, argv);
  if (wrong) return fprintf(stderr, "merge: %s\n%s", wrong, usage), 2;
  char json[512], *report = malloc(REPORT);
  write_json(&o, json, sizeof json);
  peft_error error = PEFT_ERROR_INIT;
  peft_context *context;
  int32_t code = report ? peft_context_create(&context, NULL, &error) : PEFT_ERROR_MEMORY;
  if (code == PEFT_OK) {
    code = o.compares ? peft_adapter_compare_files(report, REPORT, NULL, context, o.adapters[0], o.adapters[1], &error)
           : o.model  ? combine_over_model(&o, json, report, context, &error)
                      : peft_adapter_combine_files(report, REPORT, NULL, context, o.out, o.adapters, o.weights, o.count, json, show_progress, NULL, &error);
    peft_context_free(context);
  }
  if (code == PEFT_OK) puts(report);
  if (code == PEFT_OK && !o.compares) printf("saved to %s\n", o.out);
  if (code != PEFT_OK) fprintf(stderr, "merge: %s: %s\n", peft_status_text(code), error.message);
  free(report);
  return code != PEFT_OK;
}
