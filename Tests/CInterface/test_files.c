/* Places that cannot be written to: a full disk, a read-only file system, a file where a folder should be. What was there stays. */
#include "fixtures.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
  peft_context *context;
  peft_model *model;
  peft_trainer *trainer;
  peft_tensors *batch;
} scene;

static scene open_scene(void) {
  scene s = {open_context(1), NULL, NULL, NULL};
  s.model = open_model(s.context);
  s.batch = make_batch(s.context);
  OK(peft_adapter_add(s.model, "a", lora, NULL, &error));
  OK(peft_trainer_create(&s.trainer, s.model, "{\"lr\": 0.05, \"lr_scheduler\": \"constant\"}", &error));
  return s;
}

static void close_scene(scene *s) { peft_trainer_free(s->trainer), peft_tensors_free(s->batch), peft_model_free(s->model), peft_context_free(s->context); }

/* Every function that writes, into a folder; how many of them failed with PEFT_ERROR_IO. */
static int write_all(const scene *s, const char *folder) {
  int refused = 0;
  refused += peft_adapter_save(s->model, "a", path_in(folder, "adapter"), &error) == PEFT_ERROR_IO;
  refused += peft_adapter_save(s->model, "a", path_in(folder, "adapter.h5"), &error) == PEFT_ERROR_IO;
  refused += peft_trainer_save(s->trainer, NULL, path_in(folder, "checkpoint.h5"), &error) == PEFT_ERROR_IO;
  refused += peft_model_export(s->model, path_in(folder, "exported"), NULL, &error) == PEFT_ERROR_IO;
  refused += peft_tensors_save(s->batch, path_in(folder, "batch.safetensors"), &error) == PEFT_ERROR_IO;
  return refused;
}

static int count_files(const char *folder) {
  char command[4200];
  int count = -1;
  snprintf(command, sizeof command, "find '%s' -mindepth 1 | wc -l", folder);
  FILE *pipe = popen(command, "r");
  if (!pipe || fscanf(pipe, "%d", &count) != 1) count = -1;
  if (pipe) pclose(pipe);
  return count;
}

TEST(below_a_file) {
  scene s = open_scene();
  char file[4096];
  snprintf(file, sizeof file, "%s", MODEL_FILE("config.json"));
  CHECK(write_all(&s, file) == 5);
  FAILS_NAMING(PEFT_ERROR_IO, "config.json", peft_adapter_save(s.model, "a", MODEL_FILE("config.json/adapter"), &error));
  close_scene(&s);
}

TEST(a_full_disk) {
  char disk[4096];
  snprintf(disk, sizeof disk, "%s", SCRATCH("disk"));
  mkdir(disk, 0700);
  if (mount("tmpfs", disk, "tmpfs", 0, "size=256k")) {
    SKIP("a_full_disk: no tmpfs can be mounted here (%s)", strerror(errno));
    return;
  }
  scene s = open_scene();
  peft_tensors *before = NULL, *after = NULL;
  /* An adapter and a checkpoint that are there already. */
  OK(peft_adapter_save(s.model, "a", path_in(disk, "adapter"), &error));
  OK(peft_adapter_save(s.model, "a", path_in(disk, "adapter.h5"), &error));
  OK(peft_adapter_state(&before, s.model, "a", &error));
  const int files = count_files(disk);
  /* Somebody fills the disk, but for a page. */
  const int filler = open(path_in(disk, "filler"), O_CREAT | O_WRONLY, 0600);
  char page[4096] = {1};
  while (write(filler, page, sizeof page) > 0) {}
  CHECK(ftruncate(filler, lseek(filler, 0, SEEK_END) - 4096) == 0);
  close(filler);
  peft_step step = PEFT_STEP_INIT;
  OK(peft_trainer_step(&step, s.trainer, s.batch, &error));
  CHECK(write_all(&s, disk) == 4); /* the five-token batch finds room in the page */
  FAILS_NAMING(PEFT_ERROR_IO, "adapter", peft_adapter_save(s.model, "a", path_in(disk, "adapter"), &error));
  CHECK(count_files(disk) == files + 2); /* no temporary stays behind */
  /* What was there is whole. */
  static const char key[] = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
  OK(peft_adapter_load(s.model, "old folder", path_in(disk, "adapter"), 0, &error));
  OK(peft_adapter_load(s.model, "old file", path_in(disk, "adapter.h5"), 0, &error));
  OK(peft_adapter_state(&after, s.model, "old folder", &error));
  CHECK(difference(before, after, key) == 0);
  peft_tensors_free(after);
  OK(peft_adapter_state(&after, s.model, "old file", &error));
  CHECK(difference(before, after, key) == 0);
  peft_tensors_free(before), peft_tensors_free(after);
  /* With room again it works. */
  unlink(path_in(disk, "filler"));
  OK(peft_adapter_save(s.model, "a", path_in(disk, "adapter"), &error));
  OK(peft_trainer_save(s.trainer, NULL, path_in(disk, "checkpoint.h5"), &error));
  close_scene(&s);
  umount(disk);
}

TEST(a_read_only_file_system) {
  char disk[4096];
  snprintf(disk, sizeof disk, "%s", SCRATCH("frozen"));
  mkdir(disk, 0700);
  if (mount("tmpfs", disk, "tmpfs", MS_RDONLY, "size=64k")) {
    SKIP("a_read_only_file_system: no tmpfs can be mounted here (%s)", strerror(errno));
    return;
  }
  scene s = open_scene();
  CHECK(write_all(&s, disk) == 5);
  close_scene(&s);
  umount(disk);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(below_a_file);
  RUN(a_full_disk);
  RUN(a_read_only_file_system);
  return finish();
}
