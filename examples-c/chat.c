/* A conversation with a model and its adapters, which can be switched while it runs:
 *
 *     chat --model model.gguf --adapter smith=blacksmith --adapter pirate=other/folder
 *
 * /adapter NAME switches, /base is the model alone, /new forgets what was said, /quit ends.
 * --compare FILE puts every line of a file to the base model and to each adapter, one answer below the other; with
 * --complete FILE the lines are no questions but beginnings of a text, to be gone on with. */
#include <peftswift.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ADAPTERS = 16, MAX_LINE = 4096 };

static const char *const usage =
    "usage: chat --model PATH [--adapter NAME=FOLDER]… [options]\n"
    "  --system TEXT     the system's message\n"
    "  --temperature X   0: always the likeliest word (0.7; 0 with --compare)\n"
    "  --tokens N        longest answer (200)\n"
    "  --compare FILE    what the base and every adapter answer to each line\n"
    "  --complete FILE   how the base and every adapter go on after each line\n";

typedef struct options {
  const char *model, *system, *compare;
  char *names[MAX_ADAPTERS]; /* "NAME\0FOLDER": cut at the = */
  int count, tokens, is_text;
  double temperature;
} options;

static const char *parse(options *o, int argc, char **argv) {
  *o = (options){.tokens = 200, .temperature = -1};
  for (int i = 1; i < argc; i += 2) {
    const char *name = argv[i];
    char *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!value) return name;
    if (strcmp(name, "--model") == 0) o->model = value;
    else if (strcmp(name, "--system") == 0) o->system = value;
    else if (strcmp(name, "--compare") == 0) o->compare = value;
    else if (strcmp(name, "--complete") == 0) o->compare = value, o->is_text = 1;
    else if (strcmp(name, "--tokens") == 0) o->tokens = atoi(value);
    else if (strcmp(name, "--temperature") == 0) o->temperature = atof(value);
    else if (strcmp(name, "--adapter") == 0) {
      char *equals = strchr(value, '=');
      if (!equals || o->count == MAX_ADAPTERS) return "--adapter wants NAME=FOLDER, at most 16 times";
      *equals = 0;
      o->names[o->count++] = value;
    } else return name;
  }
  if (o->temperature < 0) o->temperature = o->compare ? 0 : 0.7;
  return o->model ? NULL : "--model is missing";
}

/* What was said, as the JSON that peft_session_append_chat reads. */
typedef struct conversation {
  char *json;
  size_t size, capacity;
} conversation;

static void put(conversation *c, const char *text, size_t size) {
  if (c->size + size + 1 > c->capacity) {
    c->capacity = 2 * (c->size + size) + 1024;
    c->json = realloc(c->json, c->capacity);
    if (!c->json) exit(1);
  }
  memcpy(c->json + c->size, text, size);
  c->size += size;
  c->json[c->size] = 0;
}

static void put_escaped(conversation *c, const char *text, size_t size) {
  for (size_t i = 0; i < size; i++) {
    char escape[8];
    unsigned char byte = (unsigned char)text[i];
    if (byte == '"' || byte == '\\') put(c, escape, (size_t)snprintf(escape, sizeof escape, "\\%c", byte));
    else if (byte < 0x20) put(c, escape, (size_t)snprintf(escape, sizeof escape, "\\u%04x", byte));
    else put(c, text + i, 1);
  }
}

static void begin_message(conversation *c, const char *role) {
  if (c->size > 0) c->size--; /* over the closing ] */
  put(c, c->size > 0 ? ", " : "[", c->size > 0 ? 2 : 1);
  put(c, "{\"role\": \"", 10);
  put(c, role, strlen(role));
  put(c, "\", \"content\": \"", 15);
}

static void end_message(conversation *c) { put(c, "\"}]", 3); }

static void say(conversation *c, const char *role, const char *text) {
  begin_message(c, role);
  put_escaped(c, text, strlen(text));
  end_message(c);
}

static void forget(conversation *c, const char *system) {
  c->size = 0;
  if (system) say(c, "system", system);
}

/* Each piece of the answer is shown at once and noted for the next turn. */
static int32_t show(void *user_data, const char *text, size_t size) {
  put_escaped(user_data, text, size);
  fwrite(text, 1, size, stdout);
  fflush(stdout);
  return 0;
}

static int32_t answer(peft_session *session, conversation *c, int tokens, peft_error *error) {
  int32_t code = peft_session_append_chat(session, c->json, error);
  if (code < 0) return code;
  begin_message(c, "assistant");
  code = peft_session_generate(session, tokens, show, c, error);
  end_message(c);
  puts("");
  return code;
}

/* The next line without its end; 0 at the end of the file. */
static int read_line(char *line, FILE *file) {
  if (!fgets(line, MAX_LINE, file)) return 0;
  line[strcspn(line, "\r\n")] = 0;
  return 1;
}

/* Each piece of a text is shown at once. */
static int32_t print(void *user_data, const char *text, size_t size) {
  (void)user_data;
  fwrite(text, 1, size, stdout);
  return fflush(stdout);
}

static int32_t complete(peft_session *session, const char *beginning, int tokens, peft_error *error) {
  int32_t code = peft_session_append_text(session, beginning, SIZE_MAX, 1, error);
  if (code >= 0) code = peft_session_generate(session, tokens, print, NULL, error);
  puts("");
  return code;
}

/* Every line to the base and to every adapter, each in a conversation of its own. */
static int32_t compare(const options *o, peft_session *session, peft_error *error) {
  FILE *questions = fopen(o->compare, "r");
  if (!questions) return perror(o->compare), PEFT_ERROR_IO;
  char line[MAX_LINE];
  conversation c = {0};
  int32_t code = PEFT_OK;
  while (code >= 0 && read_line(line, questions)) {
    if (!*line) continue;
    printf(o->is_text ? "\n  \"%s …\"\n" : "\n  You: %s\n", line);
    for (int i = -1; i < o->count && code >= 0; i++) {
      const char *name = i < 0 ? "base" : o->names[i];
      printf("  %s: ", name);
      forget(&c, o->system);
      say(&c, "user", line);
      if ((code = peft_session_rewind(session, 0, error)) < 0) break;
      if ((code = peft_session_set_adapters(session, &name, NULL, i < 0 ? 0 : 1, error)) < 0) break;
      code = o->is_text ? complete(session, line, o->tokens, error) : answer(session, &c, o->tokens, error);
    }
  }
  free(c.json);
  fclose(questions);
  return code;
}

static int32_t talk(const options *o, peft_session *session, peft_error *error) {
  char line[MAX_LINE];
  const char *name = o->count > 0 ? o->names[0] : "base";
  conversation c = {0};
  int32_t code = peft_session_set_adapters(session, &name, NULL, o->count > 0, error);
  forget(&c, o->system);
  while (code >= 0 && (printf("\nYou: "), fflush(stdout), read_line(line, stdin)) && strcmp(line, "/quit") != 0) {
    if (strncmp(line, "/adapter ", 9) == 0 || strcmp(line, "/base") == 0) {
      const char *wanted = line[1] == 'b' ? "base" : line + 9;
      int known = -1;
      for (int i = 0; i < o->count; i++)
        if (strcmp(o->names[i], wanted) == 0) known = i;
      if (known < 0 && line[1] != 'b') {
        printf("There is no adapter \"%s\". There are:", wanted);
        for (int i = 0; i < o->count; i++) printf(" %s", o->names[i]);
        puts("");
        continue;
      }
      name = known < 0 ? "base" : o->names[known];
      code = peft_session_set_adapters(session, &name, NULL, known >= 0, error);
    } else if (strcmp(line, "/new") == 0) {
      forget(&c, o->system);
      code = peft_session_rewind(session, 0, error);
    } else if (*line) {
      printf("%s: ", name);
      fflush(stdout);
      say(&c, "user", line);
      code = answer(session, &c, o->tokens, error);
      if (code == PEFT_ERROR_CONTEXT_FULL) {
        puts("(The context is full; starting anew.)");
        forget(&c, o->system);
        code = peft_session_rewind(session, 0, error);
      }
    }
  }
  puts("");
  free(c.json);
  return code;
}

int main(int argc, char **argv) {
  options o;
  const char *problem = parse(&o, argc, argv);
  if (problem) return fprintf(stderr, "chat: %s\n%s", problem, usage), 2;

  peft_context *context = NULL;
  peft_model *model = NULL;
  peft_session *session = NULL;
  peft_error error = PEFT_ERROR_INIT;
  char settings[256];
  snprintf(settings, sizeof settings, "{\"temperature\": %g, \"top_p\": 0.9, \"repetition_penalty\": 1.1}", o.temperature);

  int32_t code = peft_context_create(&context, NULL, &error);
  if (code >= 0) code = peft_model_open(&model, context, o.model, NULL, &error);
  for (int i = 0; i < o.count && code >= 0; i++) code = peft_adapter_load(model, o.names[i], o.names[i] + strlen(o.names[i]) + 1, 0, &error);
  if (code >= 0) code = peft_session_create(&session, model, settings, &error);
  if (code >= 0) code = o.compare ? compare(&o, session, &error) : talk(&o, session, &error);

  peft_session_free(session);
  peft_model_free(model);
  peft_context_free(context);
  if (code < 0) fprintf(stderr, "chat: %s: %s\n", peft_status_text(code), error.message);
  return code < 0;
}
