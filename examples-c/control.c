/* A robot that adapts where it is: a cart that balances a pole, whose pole becomes fifteen times as heavy and three times as long.
 *
 *     control
 *
 * The network (4-32-32-1), its loss and its training loop are the host's; the library owns nothing but the adapters of two layers
 * (peft_layer_forward, peft_layer_backward, peft_trainer_update). First the host fits its network to a good controller; then the
 * world changes, and a LoRA of 400 numbers learns what more or less throttle would have led to. */
#include <peftswift.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATE = 4, WIDTH = 32, STEPS = 500, TRIALS = 20, ROWS = 256, FUTURE = 40 };

/* What can change. */
typedef struct {
  double pole, length; /* kg, half length in m */
} world;

static unsigned long long seed = 7;

static double chance(void) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return (double)(seed >> 11) / 9007199254740992.0;
}

static double normal(void) { return sqrt(-2 * log(1 - chance())) * cos(6.283185307179586 * chance()); }

/* One fiftieth of a second (Barto, Sutton, Anderson 1983): s = place, speed, angle, angular speed. */
static void move(double s[STATE], double throttle, const world *w) {
  const double force = 10 * fmax(-1, fmin(1, throttle)), mass = 1 + w->pole;
  const double push = (force + w->pole * w->length * s[3] * s[3] * sin(s[2])) / mass;
  const double turn = (9.8 * sin(s[2]) - cos(s[2]) * push) / (w->length * (4.0 / 3 - w->pole * cos(s[2]) * cos(s[2]) / mass));
  const double slide = push - w->pole * w->length * turn * cos(s[2]) / mass;
  s[0] += 0.02 * s[1], s[1] += 0.02 * slide, s[2] += 0.02 * s[3], s[3] += 0.02 * turn;
}

static int has_fallen(const double s[STATE]) { return fabs(s[0]) > 2.4 || fabs(s[2]) > 0.21; }

static void start(double s[STATE]) {
  for (int i = 0; i < STATE; i++) s[i] = 0.2 * (chance() - 0.5);
}

/* ---- the host's network: tanh(W0 x + b0), tanh(W1 · + b1), W2 · + b2; layers 0 and 1 go through the library */

static float w0[WIDTH * STATE], b0[WIDTH], w1[WIDTH * WIDTH], b1[WIDTH], w2[WIDTH], b2;
static peft_model *model;
static peft_trainer *trainer;
static peft_error error = PEFT_ERROR_INIT;

static int32_t layer(float *y, peft_pass **pass, const char *name, const float *x, int rows, int width) {
  peft_array in = PEFT_ARRAY_INIT;
  in.rank = 2, in.shape[0] = rows, in.shape[1] = width, in.data = x, in.size = sizeof(float) * (size_t)(rows * width);
  return peft_layer_forward(y, (size_t)(rows * WIDTH), pass, model, name, &in, pass ? trainer : NULL, &error);
}

static float h0[ROWS * WIDTH], h1[ROWS * WIDTH], d1[ROWS * WIDTH], d0[ROWS * WIDTH];

/* The throttle for each row of states. With `passes` the way back can be gone. */
static int32_t act(float *throttle, const float *x, int rows, peft_pass *passes[2]) {
  int32_t code = layer(h0, passes ? &passes[0] : NULL, "0", x, rows, STATE);
  for (int i = 0; i < rows * WIDTH; i++) h0[i] = tanhf(h0[i]);
  if (code >= 0) code = layer(h1, passes ? &passes[1] : NULL, "1", h0, rows, WIDTH);
  for (int i = 0; i < rows * WIDTH; i++) h1[i] = tanhf(h1[i]);
  for (int r = 0; r < rows; r++) {
    throttle[r] = b2;
    for (int i = 0; i < WIDTH; i++) throttle[r] += w2[i] * h1[r * WIDTH + i];
  }
  return code;
}

/* Gradients of the adapters from those of the throttle. */
static int32_t go_back(const float *slope, int rows, peft_pass *passes[2]) {
  for (int i = 0; i < rows * WIDTH; i++) d1[i] = slope[i / WIDTH] * w2[i % WIDTH] * (1 - h1[i] * h1[i]);
  int32_t code = peft_layer_backward(d0, (size_t)(rows * WIDTH), passes[1], d1, (size_t)(rows * WIDTH), &error);
  for (int i = 0; i < rows * WIDTH; i++) d0[i] *= 1 - h0[i] * h0[i];
  if (code >= 0) code = peft_layer_backward(NULL, 0, passes[0], d0, (size_t)(rows * WIDTH), &error);
  return code;
}

/* ---- the host's world */

static void seen(float *x, double states[][STATE], int rows) {
  static const double scale[STATE] = {1 / 2.4, 0.5, 1 / 0.21, 0.5};
  for (int i = 0; i < rows * STATE; i++) x[i] = (float)(states[i / STATE][i % STATE] * scale[i % STATE]);
}

/* One step of all rows, with a push on top. */
static int32_t step_all(double states[][STATE], int rows, double extra, float *throttle, const world *w) {
  static float x[ROWS * STATE];
  seen(x, states, rows);
  const int32_t code = act(throttle, x, rows, NULL);
  for (int r = 0; r < rows; r++) move(states[r], throttle[r] + extra, w);
  return code;
}

/* Steps until the pole falls, of at most 500, on average; negative: an error. */
static double reward(const world *w) {
  static double states[TRIALS][STATE];
  float throttle[TRIALS];
  int sum = 0, is_up[TRIALS];
  for (int r = 0; r < TRIALS; r++) start(states[r]), is_up[r] = 1;
  for (int t = 0; t < STEPS; t++) {
    if (step_all(states, TRIALS, 0, throttle, w) < 0) return -1;
    for (int r = 0; r < TRIALS; r++) sum += is_up[r] = is_up[r] && !has_fallen(states[r]);
  }
  return (double)sum / TRIALS;
}

/* What the next moments cost, with a push at first: far, tilted, fast, and throttle. Adds `sign` times that to `costs`. */
static int32_t imagine(double from[][STATE], double push, double sign, double costs[ROWS], const world *w) {
  static double s[ROWS][STATE];
  float throttle[ROWS];
  memcpy(s, from, sizeof s);
  for (int t = 0; t < FUTURE; t++) {
    for (int r = 0; r < ROWS; r++) costs[r] += sign * (s[r][0] * s[r][0] + 0.1 * s[r][1] * s[r][1] + 10 * s[r][2] * s[r][2] + 0.1 * s[r][3] * s[r][3]);
    if (step_all(s, ROWS, t ? 0 : push, throttle, w) < 0) return error.code;
    for (int r = 0; r < ROWS; r++) costs[r] += sign * 0.1 * pow(fmax(-1, fmin(1, throttle[r] + (t ? 0 : push))), 2);
  }
  return 0;
}

/* One update: from where the cart comes on its own, would more throttle or less have been better? */
static int32_t adapt(const world *w) {
  static double states[ROWS][STATE], costs[ROWS];
  static float x[ROWS * STATE], slope[ROWS], throttle[ROWS];
  for (int r = 0; r < ROWS; r++) start(states[r]);
  for (int t = (int)(60 * chance()); t >= 0; t--) {
    if (step_all(states, ROWS, 0, throttle, w) < 0) return error.code;
    for (int r = 0; r < ROWS; r++)
      if (has_fallen(states[r])) start(states[r]);
  }
  memset(costs, 0, sizeof costs);
  int32_t code = imagine(states, 0.1, 1, costs, w);
  if (code >= 0) code = imagine(states, -0.1, -1, costs, w);
  for (int r = 0; r < ROWS; r++) slope[r] = (float)(fmax(-3, fmin(3, costs[r] / 0.2)) / ROWS);
  peft_pass *passes[2] = {NULL, NULL};
  peft_step step = PEFT_STEP_INIT;
  seen(x, states, ROWS);
  if (code >= 0) code = act(throttle, x, ROWS, passes);
  if (code >= 0) code = go_back(slope, ROWS, passes);
  if (code >= 0) code = peft_trainer_update(&step, trainer, &error);
  peft_pass_free(passes[0]), peft_pass_free(passes[1]);
  return code;
}

/* The last layer, so that the network does what a linear-quadratic regulator of the first world does (least squares). */
static int32_t fit(void) {
  enum { N = WIDTH + 1 };
  static const double gains[STATE] = {0.859, 1.077, 7.174, 1.736}, reach[STATE] = {2.4, 2, 0.21, 2};
  static double a[N][N + 1], states[ROWS][STATE];
  static float x[ROWS * STATE], throttle[ROWS];
  for (int batch = 0; batch < 8; batch++) {
    double wanted[ROWS];
    for (int r = 0; r < ROWS; r++) {
      wanted[r] = 0;
      for (int i = 0; i < STATE; i++) states[r][i] = (2 * chance() - 1) * reach[i], wanted[r] += gains[i] * states[r][i];
      wanted[r] = fmax(-2, fmin(2, wanted[r]));
    }
    seen(x, states, ROWS);
    if (act(throttle, x, ROWS, NULL) < 0) return error.code;
    for (int r = 0; r < ROWS; r++)
      for (int i = 0; i < N; i++) {
        const double left = i < WIDTH ? h1[r * WIDTH + i] : 1;
        for (int j = 0; j < N; j++) a[i][j] += left * (j < WIDTH ? h1[r * WIDTH + j] : 1);
        a[i][N] += left * wanted[r];
      }
  }
  for (int i = 0; i < N; i++) a[i][i] += 0.2;
  for (int i = 0; i < N; i++)
    for (int k = 0; k < N; k++) {
      const double factor = a[k][i] / a[i][i];
      for (int j = i; k != i && j <= N; j++) a[k][j] -= factor * a[i][j];
    }
  for (int i = 0; i < WIDTH; i++) w2[i] = (float)(a[i][N] / a[i][i]);
  b2 = (float)(a[WIDTH][N] / a[WIDTH][WIDTH]);
  return 0;
}

int main(void) {
  static const char graph[] = "{\"model_type\": \"graph\", \"layers\": [{\"name\": \"0\", \"kind\": \"Linear\"}, {\"name\": \"1\", \"kind\": \"Linear\"}]}";
  static const char lora[] = "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 4, \"target_modules\": [\"0\", \"1\"]}";
  const int64_t first[2] = {WIDTH, STATE}, second[2] = {WIDTH, WIDTH}, vector[1] = {WIDTH};
  const world before = {0.1, 0.5}, after = {1.5, 1.5};
  for (int i = 0; i < WIDTH * STATE; i++) w0[i] = (float)(0.6 * normal());
  for (int i = 0; i < WIDTH * WIDTH; i++) w1[i] = (float)(normal() / sqrt(WIDTH));
  for (int i = 0; i < WIDTH; i++) b0[i] = (float)(0.3 * normal()), b1[i] = (float)(0.3 * normal());
  peft_context *context = NULL;
  peft_tensors *weights = NULL;
  int32_t code = peft_context_create(&context, NULL, &error);
  if (code >= 0) code = peft_tensors_create(&weights, context, &error);
  if (code >= 0) code = peft_tensors_borrow(weights, "0.weight", PEFT_F32, 2, first, w0, &error);
  if (code >= 0) code = peft_tensors_borrow(weights, "0.bias", PEFT_F32, 1, vector, b0, &error);
  if (code >= 0) code = peft_tensors_borrow(weights, "1.weight", PEFT_F32, 2, second, w1, &error);
  if (code >= 0) code = peft_tensors_borrow(weights, "1.bias", PEFT_F32, 1, vector, b1, &error);
  if (code >= 0) code = peft_model_create(&model, context, graph, weights, NULL, &error);
  if (code >= 0) code = fit();
  if (code >= 0) printf("steps balanced, of %d: %.0f\n", STEPS, reward(&before));
  if (code >= 0) printf("another pole, the same network: %.0f\n", reward(&after));
  if (code >= 0) code = peft_adapter_add(model, "pole", lora, NULL, &error);
  if (code >= 0) code = peft_trainer_create(&trainer, model, "{\"lr\": 5e-3, \"lr_scheduler\": \"constant\"}", &error);
  for (int update = 1; code >= 0 && update <= 100; update++) {
    code = adapt(&after);
    if (code >= 0 && update % 20 == 0) printf("after %d updates: %.0f\n", update, reward(&after));
  }
  if (code >= 0) code = peft_adapter_set_enabled(model, 0, &error);
  if (code >= 0) printf("the first pole again, without the adapter: %.0f\n", reward(&before));
  if (code < 0) fprintf(stderr, "control: %s: %s\n", peft_status_text(code), error.message);
  peft_trainer_free(trainer), peft_model_free(model), peft_tensors_free(weights), peft_context_free(context);
  return code < 0;
}
