/* Gives a model's weights fewer bits, and says what that costs:
 *
 *     quantize --model model.gguf --out small.gguf --type Q4_K_M --text book.txt
 *     quantize --model folder --out four-bits --type nf4 --double          (a folder that transformers opens with bitsandbytes)
 *
 * --text: a text whose perplexity is measured before and after, and (of a folder) what it costs each layer's outputs on its
 * beginning. */
#include <math.h>
#include <peftswift.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const usage =
    "usage: quantize --model PATH --out PATH --type TYPE [options]\n"
    "  --type TYPE       of an --out that ends in .gguf: Q4_K_M, Q5_K_M, or a type for all (q8_0, q6_K, q4_0, iq4_nl ...);\n"
    "                    of a folder: nf4, fp4 or int8\n"
    "  --block N         nf4, fp4: values that share a scale (64)\n"
    "  --double          nf4, fp4: scales in 8 bits too\n"
    "  --text FILE       measure perplexity on it, before and after\n"
    "  --length N        tokens that see each other (256)\n";

static int fail(const peft_error *error) {
  fprintf(stderr, "quantize: %s: %s\n", peft_status_text(error->code), error->message);
  return 1;
}

/* e to the mean loss over a text; negative: it went wrong. */
static double perplexity(peft_model *model, const char *text, int length, peft_error *error) {
  char options[128];
  snprintf(options, sizeof options, "{\"format\": \"text\", \"max_length\": %d, \"shuffle\": false}", length);
  peft_tokenizer *tokenizer = NULL;
  peft_dataset *dataset = NULL;
  peft_tensors *batch = NULL, *outputs = NULL;
  double sum = 0, count = 0;
  int32_t result = peft_model_tokenizer(&tokenizer, model, error);
  if (result >= 0) result = peft_dataset_open(&dataset, tokenizer, text, options, error);
  while (result >= 0 && (result = peft_dataset_next(&batch, dataset, error)) == PEFT_OK) {
    peft_array ids = PEFT_ARRAY_INIT, loss = PEFT_ARRAY_INIT;
    result = peft_model_forward(&outputs, model, batch, NULL, error);
    if (result >= 0) result = peft_tensors_get(&ids, batch, "input_ids", error);
    if (result >= 0) result = peft_tensors_get(&loss, outputs, "loss", error);
    if (result >= 0) {
      const double tokens = (double)(ids.shape[1] - 1);
      sum += tokens * *(const float *)loss.data, count += tokens;
    }
    peft_tensors_free(batch), peft_tensors_free(outputs);
    batch = outputs = NULL;
  }
  peft_dataset_free(dataset), peft_tokenizer_free(tokenizer);
  return result < 0 ? -1 : exp(sum / (count > 0 ? count : 1));
}

/* What the report says of the layers that lost most, by `key`. */
static void print_worst(const char *report, const char *key, const char *what) {
  enum { most = 5 };
  struct { const char *name; double loss; } worst[most] = {{NULL, 0}};
  for (const char *at = report; (at = strstr(at, "{\"name\": \"")) != NULL;) {
    const char *value = strstr(at, key);
    double loss = value ? strtod(value + strlen(key), NULL) : 0;
    const char *name = at + 10;
    for (int i = 0; i < most; i++) { /* the smaller one moves down */
      if (worst[i].name && loss <= worst[i].loss) continue;
      const char *other = worst[i].name;
      const double its = worst[i].loss;
      worst[i].name = name, worst[i].loss = loss;
      if (!other) break;
      name = other, loss = its;
    }
    at += 10;
  }
  printf("most lost, as a share of the %s:\n", what);
  for (int i = 0; i < most && worst[i].name; i++) printf("  %.*s  %.4f\n", (int)strcspn(worst[i].name, "\""), worst[i].name, worst[i].loss);
}

/* The beginning of a file as a JSON string, or "null". */
static void quote(char *to, size_t room, const char *path) {
  FILE *file = path ? fopen(path, "rb") : NULL;
  size_t used = (size_t)snprintf(to, room, "%s", file ? "\"" : "null");
  if (!file) return;
  for (int c; used + 10 < room && (c = fgetc(file)) != EOF;) {
    const int is_plain = c >= 32 && c < 127 && c != '"' && c != '\\';
    used += (size_t)snprintf(to + used, room - used, is_plain ? "%c" : c < 128 ? "\\u%04x" : " ", (unsigned)c); /* ASCII is enough to measure on */
  }
  snprintf(to + used, room - used, "\"");
  fclose(file);
}

/* In place, by a scheme for all linear layers; says what it cost. */
static int32_t quantize(peft_model *model, const char *type, int block, int doubled, const char *text, peft_error *error) {
  static char options[1 << 15], sample[1 << 14];
  char size[64] = "";
  const int is_coded = strcmp(type, "nf4") == 0 || strcmp(type, "fp4") == 0;
  if (block > 0) snprintf(size, sizeof size, ", \"block_size\": %d", block);
  quote(sample, sizeof sample, text);
  snprintf(options, sizeof options, "{\"scheme\": \"%.40s\"%s%s, \"calibration_text\": %s}", type, size,
           doubled || is_coded ? doubled ? ", \"double_quant\": true" : ", \"double_quant\": false" : "", sample);
  enum { room = 1 << 20 };
  char *report = malloc(room);
  size_t needed = 0;
  int32_t result = peft_model_quantize(report, report ? room : 0, &needed, model, options, NULL, NULL, error);
  if (result >= 0 && report && needed < room) {
    print_worst(report, "\"relative\": ", "weights");
    if (text) print_worst(report, "\"output\": ", "outputs");
  }
  free(report);
  return result;
}

int main(int argc, char **argv) {
  const char *model_path = NULL, *out = NULL, *type = NULL, *text = NULL;
  int block = 0, doubled = 0, length = 256;
  for (int i = 1; i < argc; i++) {
    const char *const *value = (const char *const *)argv + i + 1;
    if (strcmp(argv[i], "--double") == 0) {
      doubled = 1;
      continue;
    }
    if (i + 1 == argc) return fprintf(stderr, "quantize: %s\n%s", argv[i], usage), 2;
    if (strcmp(argv[i], "--model") == 0) model_path = *value;
    else if (strcmp(argv[i], "--out") == 0) out = *value;
    else if (strcmp(argv[i], "--type") == 0) type = *value;
    else if (strcmp(argv[i], "--text") == 0) text = *value;
    else if (strcmp(argv[i], "--block") == 0) block = atoi(*value);
    else if (strcmp(argv[i], "--length") == 0) length = atoi(*value);
    else return fprintf(stderr, "quantize: %s\n%s", argv[i], usage), 2;
    i++;
  }
  if (!model_path || !out || !type) return fprintf(stderr, "%s", usage), 2;
  const int is_gguf = strlen(out) > 5 && strcmp(out + strlen(out) - 5, ".gguf") == 0;

  peft_error error = PEFT_ERROR_INIT;
  peft_context *context;
  peft_model *model = NULL, *small = NULL;
  double before = 0, after = 0;
  char dtype[80];
  int32_t result = peft_context_create(&context, NULL, &error);
  if (result >= 0) result = peft_model_open(&model, context, model_path, NULL, &error);
  if (result >= 0 && text && (before = perplexity(model, text, length, &error)) < 0) result = -1;
  if (result >= 0 && !is_gguf) result = quantize(model, type, block, doubled, text, &error);
  snprintf(dtype, sizeof dtype, "{\"dtype\": \"%.40s\"}", type);
  if (result >= 0) result = peft_model_export(model, out, is_gguf ? dtype : NULL, &error);
  if (result >= 0 && text) {
    result = peft_model_open(&small, context, out, NULL, &error); /* as others will find it */
    if (result >= 0 && (after = perplexity(small, text, length, &error)) < 0) result = -1;
    if (result >= 0) printf("perplexity %.3f before, %.3f after\n", before, after);
  }
  if (result >= 0) printf("saved to %s\n", out);
  peft_model_free(small), peft_model_free(model), peft_context_free(context);
  return result < 0 ? fail(&error) : 0;
}
