/* Networks over the host's memory: models from a graph and borrowed arrays, single layers forward and backward. */
#include "fixtures.h"

static float weight[8 * 4], bias[8], table[5 * 3];

/* A model whose weights are the arrays above. */
static peft_model *open_layers(const peft_context *context) {
  static const int64_t matrix[2] = {8, 4}, vector[1] = {8}, rows[2] = {5, 3};
  for (int i = 0; i < 32; i++) weight[i] = (float)((i * 7) % 11) / 11 - 0.4f;
  for (int i = 0; i < 8; i++) bias[i] = (float)i / 8;
  for (int i = 0; i < 15; i++) table[i] = (float)i;
  peft_tensors *weights = NULL;
  peft_model *model = NULL;
  OK(peft_tensors_create(&weights, context, &error));
  OK(peft_tensors_borrow(weights, "a.weight", PEFT_F32, 2, matrix, weight, &error));
  OK(peft_tensors_borrow(weights, "a.bias", PEFT_F32, 1, vector, bias, &error));
  OK(peft_tensors_borrow(weights, "table.weight", PEFT_F32, 2, rows, table, &error));
  OK(peft_model_create(&model, context, "{\"model_type\": \"graph\", \"layers\": [{\"name\": \"a\", \"kind\": \"Linear\"}, {\"name\": \"table\", \"kind\": \"Embedding\"}]}",
                       weights, NULL, &error));
  peft_tensors_free(weights);
  return model;
}

static peft_array array_of(int32_t type, int64_t rows, int64_t columns, const void *data, size_t size) {
  peft_array x = PEFT_ARRAY_INIT;
  x.type = type, x.rank = 2, x.shape[0] = rows, x.shape[1] = columns, x.data = data, x.size = size;
  return x;
}

TEST(forward_is_the_product_and_reads_the_hosts_memory) {
  peft_context *context = open_context(1);
  peft_model *model = open_layers(context);
  float input[2 * 4] = {1, 2, 3, 4, -1, 0.5f, 0, 2}, y[2 * 8];
  peft_array x = array_of(PEFT_F32, 2, 4, input, sizeof input);
  for (int round = 0; round < 2; round++) {
    OK(peft_layer_forward(y, 16, NULL, model, "a", &x, NULL, &error));
    for (int r = 0; r < 2; r++) {
      for (int o = 0; o < 8; o++) {
        float want = bias[o];
        for (int i = 0; i < 4; i++) want += weight[o * 4 + i] * input[r * 4 + i];
        CHECK(fabsf(y[r * 8 + o] - want) < 1e-4f);
      }
    }
    weight[5] = 3, bias[2] = -9;
  }
  int64_t ids[2] = {4, 1};
  peft_array places = array_of(PEFT_I64, 1, 2, ids, sizeof ids);
  OK(peft_layer_forward(y, 6, NULL, model, "table", &places, NULL, &error));
  CHECK(y[0] == 12 && y[2] == 14 && y[3] == 3);
  ids[0] = 5;
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 6, NULL, model, "table", &places, NULL, &error));
  peft_model_free(model), peft_context_free(context);
}

/* Least squares by hand: the adapter learns to add 1 to every output of layer "a". */
TEST(a_loop_of_ones_own_learns) {
  peft_context *context = open_context(2);
  peft_model *model = open_layers(context);
  OK(peft_adapter_add(model, "x", "{\"peft_type\": \"LORA\", \"r\": 2, \"target_modules\": [\"a\"]}", NULL, &error));
  peft_trainer *trainer = NULL;
  OK(peft_trainer_create(&trainer, model, "{\"lr\": 0.05, \"lr_scheduler\": \"constant\"}", &error));
  float input[3 * 4] = {1, 2, 3, 4, -1, 0.5f, 0, 2, 0, 1, 0, 1}, base[3 * 8], y[3 * 8], dy[3 * 8], dx[3 * 4];
  peft_array x = array_of(PEFT_F32, 3, 4, input, sizeof input);
  OK(peft_layer_forward(base, 24, NULL, model, "a", &x, NULL, &error));
  double first = 0, last = 0;
  for (int i = 0; i < 60; i++) {
    peft_pass *pass = NULL;
    peft_step step = PEFT_STEP_INIT;
    OK(peft_layer_forward(y, 24, &pass, model, "a", &x, trainer, &error));
    double loss = 0;
    for (int k = 0; k < 24; k++) dy[k] = y[k] - base[k] - 1, loss += 0.5 * dy[k] * dy[k];
    OK(peft_layer_backward(dx, 12, pass, dy, 24, &error));
    FAILS(PEFT_ERROR_STATE, peft_layer_backward(dx, 12, pass, dy, 24, &error));
    OK(peft_trainer_update(&step, trainer, &error));
    CHECK(step.updated == 1 && step.step == i + 1);
    peft_pass_free(pass);
    if (i == 0) first = loss;
    last = loss;
  }
  CHECK(last < 0.05 * first);
  /* Without an adapter's change the input's gradient is dY·W. */
  peft_pass *pass = NULL;
  OK(peft_adapter_set_enabled(model, 0, &error));
  OK(peft_layer_forward(NULL, 0, &pass, model, "a", &x, NULL, &error));
  peft_array view = PEFT_ARRAY_INIT;
  OK(peft_pass_output(&view, pass, &error));
  CHECK(view.rank == 2 && view.shape[0] == 3 && view.shape[1] == 8 && memcmp(view.data, base, sizeof base) == 0);
  OK(peft_layer_backward(dx, 12, pass, dy, 24, &error));
  float want = 0;
  for (int o = 0; o < 8; o++) want += dy[o] * weight[o * 4];
  CHECK(fabsf(dx[0] - want) < 1e-4f);
  peft_pass_free(pass);
  /* Handles outlive what they came from. */
  OK(peft_layer_forward(NULL, 0, &pass, model, "a", &x, trainer, &error));
  peft_model_free(model), peft_trainer_free(trainer), peft_context_free(context);
  OK(peft_layer_backward(NULL, 0, pass, dy, 24, &error));
  peft_pass_free(pass);
}

TEST(mistakes) {
  peft_context *context = open_context(1);
  peft_model *model = open_layers(context);
  float input[4] = {0}, y[8];
  peft_array x = array_of(PEFT_F32, 1, 4, input, sizeof input);
  FAILS(PEFT_ERROR_NOT_FOUND, peft_layer_forward(y, 8, NULL, model, "b", &x, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 7, NULL, model, "a", &x, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(NULL, 0, NULL, model, "a", &x, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 8, NULL, model, "a", NULL, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 8, NULL, model, NULL, &x, NULL, &error));
  x.size = 15;
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 8, NULL, model, "a", &x, NULL, &error));
  x = array_of(PEFT_F32, INT64_MAX, INT64_MAX, input, sizeof input);
  FAILS(PEFT_ERROR_FORMAT, peft_layer_forward(y, 8, NULL, model, "a", &x, NULL, &error));
  x = array_of(PEFT_F16, 1, 4, input, sizeof input);
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 8, NULL, model, "a", &x, NULL, &error));
  x = array_of(PEFT_F32, 1, 4, input, sizeof input);
  x.rank = 9;
  FAILS(PEFT_ERROR_ARGUMENT, peft_layer_forward(y, 8, NULL, model, "a", &x, NULL, &error));
  FAILS(PEFT_ERROR_HANDLE, peft_layer_backward(NULL, 0, NULL, y, 8, &error));
  peft_step step = PEFT_STEP_INIT;
  FAILS(PEFT_ERROR_HANDLE, peft_trainer_update(&step, NULL, &error));
  peft_pass_free(NULL);
  peft_tensors *weights = NULL;
  peft_model *none = NULL;
  OK(peft_tensors_create(&weights, context, &error));
  FAILS(PEFT_ERROR_FORMAT, peft_model_create(&none, context, "{\"model_type\": \"graph\", \"layers\": [{\"name\": \"a\", \"kind\": \"Linear\"}]}", weights, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_model_create(&none, context, "[]", weights, NULL, &error));
  FAILS(PEFT_ERROR_ARGUMENT, peft_tensors_borrow(weights, "a", PEFT_F32, 1, (const int64_t[1]){4}, NULL, &error));
  peft_tensors_free(weights), peft_model_free(model), peft_context_free(context);
}

int main(int argc, char **argv) {
  start(argc, argv);
  RUN(forward_is_the_product_and_reads_the_hosts_memory);
  RUN(a_loop_of_ones_own_learns);
  RUN(mistakes);
  return finish();
}
