// The header in C++: included twice, used with its macros, linked.
#include "peftswift.h"
#include "peftswift.h"

#include <cstdio>
#include <string>

static int32_t collect(void *user_data, const char *text, size_t size) {
  static_cast<std::string *>(user_data)->append(text, size);
  return 0;
}

int main(int, char **argv) {
  peft_error error = PEFT_ERROR_INIT;
  peft_context_options context_options = PEFT_CONTEXT_OPTIONS_INIT;
  peft_model_options model_options = PEFT_MODEL_OPTIONS_INIT;
  peft_array array = PEFT_ARRAY_INIT;
  peft_step step = PEFT_STEP_INIT;
  context_options.threads = 1;
  peft_context *context = nullptr;
  peft_model *model = nullptr;
  peft_session *session = nullptr;
  std::string text;
  const bool works = peft_context_create(&context, &context_options, &error) == PEFT_OK && peft_model_open(&model, context, argv[1], &model_options, &error) == PEFT_OK &&
                     peft_session_create(&session, model, R"({"ignore_eos": true})", &error) == PEFT_OK &&
                     peft_session_append_text(session, "the iron", SIZE_MAX, 1, &error) == PEFT_OK && peft_session_generate(session, 20, collect, &text, &error) == PEFT_OK &&
                     !text.empty() && array.struct_size == sizeof array && step.struct_size == sizeof step;
  if (!works) std::printf("  %s\n", error.message);
  peft_session_free(session), peft_model_free(model), peft_context_free(context);
  std::printf("%d passed, %d failed\n", works, !works);
  return !works;
}
