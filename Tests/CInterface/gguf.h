/* Writes the tiny model as a GGUF image: what a game packs into its archive. */
#ifndef GGUF_H
#define GGUF_H

#include "fixtures.h"

typedef struct {
  unsigned char *bytes;
  size_t size, capacity;
} image;

static inline void put(image *file, const void *data, size_t size) {
  if (file->size + size > file->capacity) {
    file->capacity = 2 * (file->size + size);
    file->bytes = realloc(file->bytes, file->capacity);
    if (!file->bytes) exit(3);
  }
  memcpy(file->bytes + file->size, data, size);
  file->size += size;
}

static inline void put_u32(image *file, uint32_t value) { put(file, &value, 4); }
static inline void put_u64(image *file, uint64_t value) { put(file, &value, 8); }
static inline void put_text(image *file, const char *text) { put_u64(file, strlen(text)), put(file, text, strlen(text)); }
static inline void align(image *file) {
  while (file->size % 32) put(file, "", 1);
}

static inline void meta_u32(image *file, const char *key, uint32_t value) { put_text(file, key), put_u32(file, 4), put_u32(file, value); }
static inline void meta_f32(image *file, const char *key, float value) { put_text(file, key), put_u32(file, 6), put(file, &value, 4); }

/* "model.layers.1.self_attn.q_proj.weight" -> "blk.1.attn_q.weight" */
static inline void gguf_name(const char *name, char *result) {
  static const char *const names[][2] = {{"model.embed_tokens.weight", "token_embd.weight"}, {"model.norm.weight", "output_norm.weight"}, {"lm_head.weight", "output.weight"},
                                         {"input_layernorm", "attn_norm"}, {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"}, {"self_attn.v_proj", "attn_v"},
                                         {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"}, {"mlp.gate_proj", "ffn_gate"},
                                         {"mlp.up_proj", "ffn_up"}, {"mlp.down_proj", "ffn_down"}};
  for (int i = 0; i < 12; i++) {
    if (i < 3 && strcmp(name, names[i][0]) == 0) strcpy(result, names[i][1]);
    if (i >= 3 && strstr(name, names[i][0])) sprintf(result, "blk.%c.%s.weight", name[strlen("model.layers.")], names[i][1]);
  }
}

/* Row `row` of a projection in llama.cpp's order: the two rows that are rotated together are neighbours. */
static inline int64_t rotated_row(const char *name, int64_t row, int64_t rows, int64_t heads) {
  if (!strstr(name, "q_proj") && !strstr(name, "k_proj")) return row;
  const int64_t size = rows / heads, head = row / size, place = row % size;
  return head * size + place % 2 * (size / 2) + place / 2;
}

/* A row as q8_0: 32 values share an f16 scale, here a power of two. */
static inline void put_q8_0(image *file, const float *row, int64_t columns) {
  for (int64_t block = 0; block < columns; block += 32) {
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(row[block + i]));
    const int exponent = largest > 0 ? (int)ceilf(log2f(largest / 127)) : 0;
    const uint16_t scale = (uint16_t)((exponent + 15) << 10); /* 2^exponent as f16 */
    put(file, &scale, 2);
    for (int i = 0; i < 32; i++) {
      const signed char code = (signed char)lrintf(ldexpf(row[block + i], -exponent));
      put(file, &code, 1);
    }
  }
}

/* The whole image, without a tokenizer. `quantised`: matrices in q8_0. */
static inline image make_gguf(const peft_model *model, int quantised) {
  image file = {NULL, 0, 0}, data = {NULL, 0, 0};
  peft_tensors *state = NULL;
  OK(peft_model_state(&state, model, NULL, &error));
  const int64_t count = peft_tensors_count(state);
  put(&file, "GGUF", 4), put_u32(&file, 3), put_u64(&file, (uint64_t)count), put_u64(&file, 10);
  put_text(&file, "general.architecture"), put_u32(&file, 8), put_text(&file, "llama");
  meta_u32(&file, "llama.block_count", 2), meta_u32(&file, "llama.embedding_length", 32), meta_u32(&file, "llama.feed_forward_length", 64);
  meta_u32(&file, "llama.context_length", 64), meta_u32(&file, "llama.attention.head_count", 4), meta_u32(&file, "llama.attention.head_count_kv", 2);
  meta_u32(&file, "llama.vocab_size", 96);
  meta_f32(&file, "llama.attention.layer_norm_rms_epsilon", 1e-6f), meta_f32(&file, "llama.rope.freq_base", 10000);
  for (int64_t i = 0; i < count; i++) {
    const char *name = peft_tensors_name(state, i);
    char translated[64] = "";
    peft_array array = PEFT_ARRAY_INIT;
    OK(peft_tensors_get(&array, state, name, &error));
    gguf_name(name, translated);
    const int64_t rows = array.rank == 2 ? array.shape[0] : 1, columns = array.shape[array.rank - 1], heads = strstr(name, "q_proj") ? 4 : 2;
    const int is_q8 = quantised && array.rank == 2;
    put_text(&file, translated), put_u32(&file, (uint32_t)array.rank), put_u64(&file, (uint64_t)columns);
    if (array.rank == 2) put_u64(&file, (uint64_t)rows);
    put_u32(&file, is_q8 ? 8 : 0), put_u64(&file, data.size);
    for (int64_t row = 0; row < rows; row++) {
      const float *values = (const float *)array.data + rotated_row(name, row, rows, heads) * columns;
      if (is_q8) put_q8_0(&data, values, columns);
      else put(&data, values, (size_t)columns * 4);
    }
    align(&data);
  }
  align(&file), put(&file, data.bytes, data.size);
  free(data.bytes), peft_tensors_free(state);
  return file;
}

#endif
