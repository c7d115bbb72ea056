/* What a game's frames feel of training beside them: a host thread computes for 4 ms, 60 times a second, while another trains.
 *
 *     cc -O2 -Iinclude Benchmarks/frames.c -o build/frames -Lbuild -lpeftswift -lpthread -Wl,-rpath,'$ORIGIN'
 *     build/frames MODEL [SECONDS]
 *
 * A row for each number of the library's threads (0: nothing trains): frames computed too late (the next one was due), the median and the
 * 99th percentile of a frame's own 4 ms, and the tokens a second that training made meanwhile. */
#define _GNU_SOURCE
#include <peftswift.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { frame_ns = 16666667, most_frames = 6000, length = 128 };

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static volatile double sink;

/* So many rounds of arithmetic that lives in registers. */
static void compute(long rounds) {
  double x = 1;
  for (long i = 0; i < rounds; i++) x = x * 1.0000001 + 1e-9;
  sink = x;
}

static atomic_int is_over;
static double trained;

typedef struct job {
  const char *path;
  int32_t threads;
} job;

static void *train(void *data) {
  const job *j = data;
  peft_error error = PEFT_ERROR_INIT;
  peft_context_options options = PEFT_CONTEXT_OPTIONS_INIT;
  peft_context *context = NULL;
  peft_model *model = NULL;
  peft_trainer *trainer = NULL;
  peft_tensors *batch = NULL;
  peft_step step = PEFT_STEP_INIT;
  static int64_t ids[length];
  const int64_t shape[2] = {1, length};
  options.threads = j->threads;
  for (int i = 0; i < length; i++) ids[i] = 100 + i * 37 % 4000;
  int failed = peft_context_create(&context, &options, &error) || peft_model_open(&model, context, j->path, NULL, &error) ||
               peft_adapter_add(model, "a", "{\"peft_type\": \"LORA\", \"target_modules\": \"all-linear\"}", NULL, &error) ||
               peft_trainer_create(&trainer, model, "{\"lr_scheduler\": \"constant\"}", &error) || peft_tensors_create(&batch, context, &error) ||
               peft_tensors_set(batch, "input_ids", PEFT_I64, 2, shape, ids, &error) || peft_tensors_set(batch, "labels", PEFT_I64, 2, shape, ids, &error);
  const double begin = seconds();
  long tokens = 0;
  while (!failed && !atomic_load(&is_over)) {
    failed = peft_trainer_step(&step, trainer, batch, &error) != PEFT_OK;
    tokens += length;
  }
  trained = (double)tokens / (seconds() - begin);
  if (failed) fprintf(stderr, "%s\n", error.message);
  peft_tensors_free(batch);
  peft_trainer_free(trainer);
  peft_model_free(model);
  peft_context_free(context);
  return NULL;
}

static int ascending(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

int main(int argc, char **argv) {
  if (argc < 2) return fprintf(stderr, "usage: %s MODEL [SECONDS]\n", argv[0]), 2;
  const double duration = argc > 2 ? atof(argv[2]) : 10;
  long rounds = 100000;
  for (int i = 0; i < 20; i++) { /* as many as take 4 ms when nothing else runs */
    const double begin = seconds();
    compute(rounds);
    rounds = (long)((double)rounds * 0.004 / (seconds() - begin));
  }
  printf("library's threads   late frames   median ms   99 %% ms   trained tok/s\n");
  for (int32_t threads = 0; threads <= 2; threads++) {
    job j = {argv[1], threads};
    pthread_t thread;
    static double times[most_frames];
    int count = 0, late = 0;
    atomic_store(&is_over, 0);
    trained = 0;
    if (threads && pthread_create(&thread, NULL, train, &j)) return 1;
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    due.tv_sec += threads ? 2 : 0; /* the model is open by then */
    const double end = (double)due.tv_sec + duration;
    while (count < most_frames && (double)due.tv_sec < end) {
      clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
      const double begin = (double)due.tv_sec + (double)due.tv_nsec * 1e-9;
      compute(rounds);
      times[count] = (seconds() - begin) * 1e3; /* waking up included */
      late += times[count++] * 1e6 > frame_ns;
      due.tv_nsec += frame_ns;
      if (due.tv_nsec >= 1000000000) due.tv_nsec -= 1000000000, due.tv_sec++;
    }
    atomic_store(&is_over, 1);
    if (threads) pthread_join(thread, NULL);
    qsort(times, (size_t)count, sizeof *times, ascending);
    printf("%17d   %5d / %3d   %9.2f   %7.2f   %13.0f\n", (int)threads, late, count, times[count / 2], times[count * 99 / 100], trained);
  }
  return 0;
}
