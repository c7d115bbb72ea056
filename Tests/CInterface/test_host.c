/* A guest's manners: what the host's process is before, during and after the library's work. The library is loaded here, not linked,
 * so that loading is watched too. */
#include "fixtures.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <fenv.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xmmintrin.h>

extern char **environ;

/* Everything about the process that is the host's alone. */
typedef struct {
  struct sigaction actions[64];
  sigset_t mask;
  char locale[256], folder[4096], environment[65536];
  int rounding;
  unsigned control; /* MXCSR without its sticky flags */
  mode_t umask;
  struct rlimit files, memory;
  int descriptors;
} process_state;

/* Entries of /proc/self/<what>; for "fd" the one that looks is among them. */
static int count_of_this_process(const char *what) {
  char folder[64];
  snprintf(folder, sizeof folder, "/proc/self/%s", what);
  DIR *entries = opendir(folder);
  int count = 0;
  for (struct dirent *entry; entries && (entry = readdir(entries));) count += entry->d_name[0] != '.';
  if (entries) closedir(entries);
  return count;
}

static void look(process_state *s) {
  memset(s, 0, sizeof *s);
  for (int i = 1; i < 64; i++) sigaction(i, NULL, &s->actions[i]);
  pthread_sigmask(SIG_SETMASK, NULL, &s->mask);
  snprintf(s->locale, sizeof s->locale, "%s", setlocale(LC_ALL, NULL));
  CHECK(getcwd(s->folder, sizeof s->folder) != NULL);
  size_t used = 0;
  for (char **v = environ; *v && used < sizeof s->environment; v++) used += (size_t)snprintf(s->environment + used, sizeof s->environment - used, "%s\n", *v);
  s->rounding = fegetround();
  s->control = _mm_getcsr() & ~0x3fu;
  s->umask = umask(0);
  umask(s->umask);
  getrlimit(RLIMIT_NOFILE, &s->files);
  getrlimit(RLIMIT_AS, &s->memory);
  s->descriptors = count_of_this_process("fd");
}

/* 1 when everything is as it was. */
static int is_same(const process_state *a, const process_state *b) {
  int same = 1;
  for (int i = 1; i < 64; i++) same &= CHECK(a->actions[i].sa_handler == b->actions[i].sa_handler && a->actions[i].sa_flags == b->actions[i].sa_flags);
  same &= CHECK(memcmp(&a->mask, &b->mask, sizeof a->mask) == 0);
  same &= CHECK(strcmp(a->locale, b->locale) == 0) & CHECK(strcmp(a->folder, b->folder) == 0) & CHECK(strcmp(a->environment, b->environment) == 0);
  same &= CHECK(a->rounding == b->rounding) & CHECK(a->control == b->control) & CHECK(a->umask == b->umask);
  same &= CHECK(memcmp(&a->files, &b->files, sizeof a->files) == 0) & CHECK(memcmp(&a->memory, &b->memory, sizeof a->memory) == 0);
  same &= CHECK(a->descriptors == b->descriptors);
  return same;
}

/* Only what is used here, found with dlsym. */
#define FUNCTIONS(F)                                                                                                                     \
  F(peft_context_create) F(peft_context_free) F(peft_model_open) F(peft_model_free) F(peft_adapter_add) F(peft_adapter_save) F(peft_adapter_load) \
  F(peft_trainer_create) F(peft_trainer_step) F(peft_trainer_save) F(peft_trainer_free) F(peft_tensors_create) F(peft_tensors_set) F(peft_tensors_free) \
  F(peft_features) F(peft_model_forward) F(peft_session_create) F(peft_session_append_text) F(peft_session_generate) F(peft_session_free)

#define DECLARE(name) static __typeof__(name) *lib_##name;
FUNCTIONS(DECLARE)

static int load(void) {
  void *library = dlopen("libpeftswift.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) return printf("  %s\n", dlerror()), 0;
#define FIND(name) \
  if (!(*(void **)&lib_##name = dlsym(library, #name))) return printf("  no " #name "\n"), 0;
  FUNCTIONS(FIND)
  return 1;
}

static peft_tensors *batch_of(peft_context *context) {
  static const int64_t ids[10] = {1, 7, 9, 11, 13, 1, 20, 22, 24, 26}, shape[2] = {2, 5};
  peft_tensors *batch = NULL;
  OK(lib_peft_tensors_create(&batch, context, &error));
  OK(lib_peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error));
  OK(lib_peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error));
  return batch;
}

static process_state before;
static peft_context *context;
static peft_model *model;

TEST(loading) {
  process_state after;
  look(&before);
  const int threads = count_of_this_process("task");
  if (!CHECK(load())) return;
  look(&after);
  CHECK(is_same(&before, &after));
  CHECK(threads == 1 && count_of_this_process("task") == 1);
}

/* Counts warnings that name AMX. */
static void count_refusals(void *user_data, int32_t level, const char *message) {
  *(int *)user_data += level == PEFT_LOG_WARNING && strstr(message, "AMX");
}

/* A stack for signals on which AMX' registers have no room: Linux refuses them, and the library says so and does without. Asking what the processor
 * has does not ask for them: else Linux would refuse the stack. In a child, because what Linux has given it does not take back. */
TEST(a_small_stack_for_signals) {
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    static char small[4096];
    const stack_t stack = {.ss_sp = small, .ss_size = sizeof small};
    char features[16384];
    int refusals = 0;
    peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
    options.threads = 1, options.log = count_refusals, options.user_data = &refusals;
    if (lib_peft_features(features, sizeof features, NULL, &error) != PEFT_OK) _exit(1);
    if (sigaltstack(&stack, NULL) != 0) _exit(2);
    if (lib_peft_context_create(&context, &options, &error) != PEFT_OK) _exit(3);
    peft_model_options bf16 = PEFT_MODEL_OPTIONS_INIT;
    bf16.compute = PEFT_COMPUTE_BF16;
    if (lib_peft_model_open(&model, context, model_folder, &bf16, &error) != PEFT_OK) _exit(4);
    peft_tensors *batch = batch_of(context), *outputs = NULL;
    _exit(lib_peft_model_forward(&outputs, model, batch, NULL, &error) != PEFT_OK ? 5 : refusals != (strstr(features, "\"amx\"") != NULL) ? 6 : 0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

/* Opened before a fork, used after it: workers start at the first use. */
TEST(a_fork_before_the_first_use) {
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  options.threads = 2;
  OK(lib_peft_context_create(&context, &options, &error));
  OK(lib_peft_model_open(&model, context, model_folder, NULL, &error));
  CHECK(count_of_this_process("task") == 1);
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    peft_tensors *batch = batch_of(context), *outputs = NULL;
    _exit(lib_peft_model_forward(&outputs, model, batch, NULL, &error) == PEFT_OK ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Work of all kinds, with output going where it can be counted. */
TEST(working_is_silent_and_changes_nothing) {
  process_state after;
  char printed[4096];
  snprintf(printed, sizeof printed, "%s", SCRATCH("printed"));
  fflush(stdout), fflush(stderr);
  const int out = dup(1), err = dup(2), file = open(printed, O_RDWR | O_CREAT | O_TRUNC, 0600);
  dup2(file, 1), dup2(file, 2);
  int32_t codes[12] = {0};
  int n = 0;
  peft_trainer *trainer = NULL;
  peft_session *session = NULL;
  peft_model *bad = NULL;
  peft_step step = PEFT_STEP_INIT;
  peft_tensors *batch = batch_of(context), *outputs = NULL;
  codes[n++] = lib_peft_adapter_add(model, "a", "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": \"all-linear\", \"init_lora_weights\": \"orthogonal\", \"unknown\": 1}", NULL, NULL);
  codes[n++] = lib_peft_trainer_create(&trainer, model, "{\"lr_scheduler\": \"constant\"}", NULL);
  codes[n++] = lib_peft_trainer_step(&step, trainer, batch, NULL);
  codes[n++] = lib_peft_trainer_save(trainer, NULL, SCRATCH("host.h5"), NULL);
  codes[n++] = lib_peft_adapter_save(model, "a", SCRATCH("host"), NULL);
  codes[n++] = lib_peft_adapter_load(model, "b", SCRATCH("host.h5"), 0, NULL);
  codes[n++] = lib_peft_model_forward(&outputs, model, batch, NULL, NULL);
  codes[n++] = lib_peft_session_create(&session, model, NULL, NULL);
  codes[n++] = lib_peft_session_append_text(session, "the iron", SIZE_MAX, 1, NULL);
  codes[n++] = lib_peft_session_generate(session, 5, NULL, NULL, NULL) < 0;
  /* Failures are silent too, those of the HDF5 library among them. */
  const int32_t refused = lib_peft_model_open(&bad, context, "/nowhere", NULL, NULL), no_hdf5 = lib_peft_adapter_load(model, "c", MODEL_FILE("model.safetensors"), 0, NULL);
  lib_peft_trainer_free(trainer), lib_peft_session_free(session), lib_peft_tensors_free(outputs), lib_peft_tensors_free(batch);
  fflush(stdout), fflush(stderr);
  dup2(out, 1), dup2(err, 2);
  const off_t size = lseek(file, 0, SEEK_END);
  close(out), close(err), close(file);
  CHECK(size == 0 && refused < 0 && no_hdf5 < 0);
  for (int i = 0; i < n; i++) CHECK(codes[i] == PEFT_OK);
  lib_peft_model_free(model), lib_peft_context_free(context);
  look(&after);
  CHECK(is_same(&before, &after));
  CHECK(count_of_this_process("task") == 1); /* workers were joined */
}

/* Under unusual settings of the host the numbers are the same, and the settings stay. */
TEST(the_hosts_own_settings) {
  peft_tensors *results[2] = {NULL};
  peft_context *contexts[2] = {NULL};
  sigset_t blocked, present;
  for (int i = 0; i < 2; i++) {
    if (i == 1) {
      setlocale(LC_ALL, "de_DE.UTF-8"); /* a decimal comma, where there is one */
      sigemptyset(&blocked), sigaddset(&blocked, SIGUSR1);
      pthread_sigmask(SIG_SETMASK, &blocked, NULL);
    }
    peft_model *m = NULL;
    OK(lib_peft_context_create(&contexts[i], NULL, &error));
    OK(lib_peft_model_open(&m, contexts[i], model_folder, NULL, &error));
    OK(lib_peft_adapter_add(m, "a", "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 6.5, \"target_modules\": [\"q_proj\"]}", NULL, &error));
    peft_tensors *batch = batch_of(contexts[i]);
    OK(lib_peft_model_forward(&results[i], m, batch, NULL, &error));
    lib_peft_tensors_free(batch), lib_peft_model_free(m);
  }
  pthread_sigmask(SIG_SETMASK, NULL, &present);
  CHECK(sigismember(&present, SIGUSR1) && !sigismember(&present, SIGUSR2));
  CHECK(results[0] && results[1]);
  lib_peft_tensors_free(results[0]), lib_peft_tensors_free(results[1]), lib_peft_context_free(contexts[0]), lib_peft_context_free(contexts[1]);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(loading);
  if (lib_peft_session_free) {
    RUN(a_small_stack_for_signals);
    RUN(a_fork_before_the_first_use);
    RUN(working_is_silent_and_changes_nothing);
    RUN(the_hosts_own_settings);
  }
  return finish();
}
