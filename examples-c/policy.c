/* Teaches a game's network a changed rule: Reversi's becomes misère Reversi's, where the fewer discs win.
 *
 *     policy .cache/reversi            (scripts/fetch_inputs.py reversi)
 *
 * A LoRA plays against the network it sits on, in one batch: the learner's positions through the adapter, the opponent's without it.
 * In the positions it comes to, it learns the move after which most games that are played out at random are won. */
#include <peftswift.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GAMES = 64, CELLS = 64, PASS = 64, MOVES = 65, LONGEST = 130, OPENING = 4, BATCH = 64, PASSES = 2, PLAYOUTS = 16 };

typedef struct {
  signed char cell[CELLS]; /* 1, -1: discs of the first and of the second player; 0: empty */
  signed char turn;
  int passes, moves, learner; /* two passes end a game; learner: the side that learns */
} game;

typedef struct {
  float planes[2 * CELLS];
  int64_t move;
} example;

static unsigned long long seed = 1;

static double chance(void) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return (double)(seed >> 11) / 9007199254740992.0;
}

/* How many discs a move turns; `turns`: and turns them. */
static int flips(game *g, int place, int turns) {
  int total = 0;
  if (g->cell[place]) return 0;
  for (int dy = -1; dy <= 1; dy++) {
    for (int dx = -1; dx <= 1; dx++) {
      int y = place / 8 + dy, x = place % 8 + dx, count = 0;
      while ((dy || dx) && y >= 0 && y < 8 && x >= 0 && x < 8 && g->cell[8 * y + x] == -g->turn) y += dy, x += dx, count++;
      if (!count || y < 0 || y > 7 || x < 0 || x > 7 || g->cell[8 * y + x] != g->turn) continue;
      total += count;
      for (int i = 1; turns && i <= count; i++) g->cell[8 * (y - i * dy) + x - i * dx] = g->turn;
    }
  }
  return total;
}

static int legal(game *g, int moves[MOVES]) {
  int count = 0;
  for (int place = 0; place < CELLS; place++)
    if (flips(g, place, 0)) moves[count++] = place;
  if (!count) moves[count++] = PASS;
  return count;
}

static void play(game *g, int move) {
  if (move != PASS) flips(g, move, 1), g->cell[move] = g->turn;
  g->passes = move == PASS ? g->passes + 1 : 0;
  g->moves++;
  g->turn = (signed char)-g->turn;
}

static int is_over(const game *g) { return g->passes >= 2; }

static void begin(game *g, int number) {
  memset(g, 0, sizeof *g);
  g->cell[27] = g->cell[36] = -1, g->cell[28] = g->cell[35] = 1;
  g->turn = 1, g->learner = number % 2 ? -1 : 1;
}

/* 1: the side has fewer discs than the other; 1/2: as many. */
static double result(const game *g, int side) {
  int sum = 0;
  for (int i = 0; i < CELLS; i++) sum += g->cell[i];
  return sum * side < 0 ? 1 : sum ? 0 : 0.5;
}

/* One move from the logits of the legal ones: the best, or (`explores`) drawn. */
static int choose(game *g, const float *logits, int explores) {
  int moves[MOVES], count = legal(g, moves), best = 0;
  double sum = 0, weights[MOVES];
  for (int i = 1; i < count; i++)
    if (logits[moves[i]] > logits[moves[best]]) best = i;
  if (!explores) return moves[best];
  for (int i = 0; i < count; i++) sum += weights[i] = exp(logits[moves[i]] - logits[moves[best]]);
  double point = chance() * sum;
  for (int i = 0; i < count; i++)
    if ((point -= weights[i]) < 0) return moves[i];
  return moves[best];
}

static int any(game *g) {
  int moves[MOVES], count = legal(g, moves);
  return moves[(int)(chance() * count)];
}

/* The move after which most of some games, played out at random, are won. */
static int searched(game *g) {
  int moves[MOVES], count = legal(g, moves), best = 0;
  double most = -1;
  for (int i = 0; i < count && count > 1; i++) {
    double points = 0;
    for (int playout = 0; playout < PLAYOUTS; playout++) {
      game copy = *g;
      for (play(&copy, moves[i]); !is_over(&copy);) play(&copy, any(&copy));
      points += result(&copy, g->turn);
    }
    if (points > most) most = points, best = i;
  }
  return moves[best];
}

/* All games to their ends. The learner's share of the points, or -1. `examples`: its moves are drawn, and what a search
 * would have played in half of its positions goes there.
 * `opponent`: "__base__", or NULL for one that plays anything. */
static double play_all(game games[GAMES], const peft_context *context, const peft_model *model, const char *opponent, example *examples, int *count,
                       peft_error *error) {
  static float planes[GAMES * 2 * CELLS];
  static char options[GAMES * 16 + 64];
  for (int i = 0; i < GAMES; i++) {
    begin(&games[i], i);
    for (int move = 0; move < OPENING; move++) play(&games[i], any(&games[i]));
  }
  for (;;) {
    int asked[GAMES], n = 0;
    char *end = options + sprintf(options, "{\"adapter_names\": [");
    /* Rows with the same adapter lie together. */
    for (int i = 0; i < 2 * GAMES; i++) {
      game *g = &games[i % GAMES];
      while (!is_over(g) && !opponent && g->turn != g->learner) play(g, any(g));
      if (is_over(g) || (g->turn == g->learner) != (i < GAMES)) continue;
      for (int c = 0; c < CELLS; c++) {
        planes[(2 * n) * CELLS + c] = g->cell[c] == g->turn;
        planes[(2 * n + 1) * CELLS + c] = g->cell[c] == -g->turn;
      }
      end += sprintf(end, "%s\"%s\"", n ? ", " : "", i < GAMES ? "misere" : opponent);
      asked[n++] = i % GAMES;
    }
    if (!n) break;
    strcpy(end, "]}");
    const int64_t shape[4] = {n, 2, 8, 8};
    peft_tensors *inputs = NULL, *outputs = NULL;
    peft_array logits = PEFT_ARRAY_INIT;
    int32_t code = peft_tensors_create(&inputs, context, error);
    if (code >= 0) code = peft_tensors_set(inputs, "x", PEFT_F32, 4, shape, planes, error);
    if (code >= 0) code = peft_model_forward(&outputs, model, inputs, options, error);
    if (code >= 0) code = peft_tensors_get(&logits, outputs, "logits", error);
    for (int i = 0; code >= 0 && i < n; i++) {
      game *g = &games[asked[i]];
      const int move = choose(g, (const float *)logits.data + (int64_t)MOVES * i, examples && g->turn == g->learner);
      if (examples && g->turn == g->learner && chance() < 0.5) {
        example *one = &examples[(*count)++];
        memcpy(one->planes, planes + 2 * CELLS * i, sizeof one->planes);
        one->move = searched(g);
      }
      play(g, move);
    }
    peft_tensors_free(inputs), peft_tensors_free(outputs);
    if (code < 0) return -1;
  }
  double points = 0;
  for (int i = 0; i < GAMES; i++) points += result(&games[i], games[i].learner);
  return points / GAMES;
}

/* Learns the moves, in a random order. */
static int32_t learn(example *examples, int count, const peft_context *context, peft_trainer *trainer, peft_error *error) {
  static float planes[BATCH * 2 * CELLS];
  int64_t moves[BATCH];
  for (int i = count - 1; i > 0; i--) {
    const int other = (int)(chance() * (i + 1));
    const example one = examples[i];
    examples[i] = examples[other], examples[other] = one;
  }
  for (int start = 0; start + BATCH <= count; start += BATCH) {
    for (int i = 0; i < BATCH; i++) {
      memcpy(planes + 2 * CELLS * i, examples[start + i].planes, sizeof examples->planes);
      moves[i] = examples[start + i].move;
    }
    const int64_t shape[4] = {BATCH, 2, 8, 8};
    peft_tensors *batch = NULL;
    peft_step step = PEFT_STEP_INIT;
    int32_t code = peft_tensors_create(&batch, context, error);
    if (code >= 0) code = peft_tensors_set(batch, "x", PEFT_F32, 4, shape, planes, error);
    if (code >= 0) code = peft_tensors_set(batch, "labels", PEFT_I64, 1, shape, moves, error);
    if (code >= 0) code = peft_trainer_step(&step, trainer, batch, error);
    peft_tensors_free(batch);
    if (code < 0) return code;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 2 || argc > 3) return fprintf(stderr, "usage: policy MODEL [ROUNDS]\n"), 2;
  const int rounds = argc > 2 ? atoi(argv[2]) : 4;
  static game games[GAMES];
  static example examples[GAMES * LONGEST];
  peft_context *context = NULL;
  peft_model *model = NULL;
  peft_trainer *trainer = NULL;
  peft_error error = PEFT_ERROR_INIT;
  int32_t code = peft_context_create(&context, NULL, &error);
  if (code >= 0) code = peft_model_open(&model, context, argv[1], NULL, &error);
  if (code >= 0)
    code = peft_adapter_add(model, "misere", "{\"peft_type\": \"LORA\", \"r\": 8, \"lora_alpha\": 16, \"target_modules\": [\"stem\", \"conv1\", \"conv2\", \"linear\"]}", NULL, &error);
  if (code >= 0) code = peft_trainer_create(&trainer, model, "{\"lr\": 3e-3, \"lr_scheduler\": \"constant\"}", &error);
  double share = 0;
  const unsigned long long first = seed;
  if (code >= 0 && (share = play_all(games, context, model, "__base__", NULL, NULL, &error)) < 0) code = error.code;
  if (code >= 0) printf("before learning: %.1f of %d games against itself\n", GAMES * share, GAMES);
  seed = first;
  for (int round = 0; code >= 0 && round <= rounds; round++) {
    int count = 0;
    share = play_all(games, context, model, "__base__", examples, &count, &error);
    code = share < 0 ? error.code : 0;
    for (int pass = 0; code >= 0 && pass < PASSES; pass++) code = learn(examples, count, context, trainer, &error);
    if (code >= 0) printf("round %2d: %.1f of %d games against the frozen network\n", round, GAMES * share, GAMES), fflush(stdout);
  }
  if (code >= 0 && (share = play_all(games, context, model, "__base__", NULL, NULL, &error)) < 0) code = error.code;
  const double other = code >= 0 ? play_all(games, context, model, NULL, NULL, NULL, &error) : -1;
  if (code >= 0 && other < 0) code = error.code;
  if (code >= 0) printf("playing its best: %.1f of %d games (%.0f %%) against the frozen network, %.1f of %d (%.0f %%) against one that plays anything\n", GAMES * share,
                        GAMES, 100 * share, GAMES * other, GAMES, 100 * other);
  if (code < 0) fprintf(stderr, "policy: %s: %s\n", peft_status_text(code), error.message);
  peft_trainer_free(trainer), peft_model_free(model), peft_context_free(context);
  return code < 0;
}
