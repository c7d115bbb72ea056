/* Opens a model and lets it go on with a text:  minimal model.gguf "Once upon a time" */
#include <peftswift.h>
#include <stdio.h>
#include <string.h>

static int32_t print(void *user_data, const char *text, size_t size) {
  (void)user_data;
  fwrite(text, 1, size, stdout);
  return fflush(stdout);
}

int main(int argc, char **argv) {
  peft_context *context = NULL;
  peft_model *model = NULL;
  peft_session *session = NULL;
  peft_error error = PEFT_ERROR_INIT;

  if (argc == 2 && strcmp(argv[1], "--version") == 0) return puts(peft_version()) < 0;
  if (argc != 3) return fprintf(stderr, "usage: %s MODEL TEXT\n", argv[0]), 2;

  int failed = peft_context_create(&context, NULL, &error) < 0 || peft_model_open(&model, context, argv[1], NULL, &error) < 0 ||
               peft_session_create(&session, model, NULL, &error) < 0 || peft_session_append_text(session, argv[2], SIZE_MAX, 1, &error) < 0 ||
               peft_session_generate(session, 64, print, NULL, &error) < 0;
  puts("");
  if (failed) fprintf(stderr, "%s: %s\n", peft_status_text(error.code), error.message);

  peft_session_free(session);
  peft_model_free(model);
  peft_context_free(context);
  return failed;
}
