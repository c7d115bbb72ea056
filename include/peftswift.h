/* peftswift.h: fine-tuning and running neural networks with parameter-efficient adapters, inside your process.
 *
 * This header is the whole contract. It is C99 and C++, includes only <stdint.h> and <stddef.h>, and needs none of its
 * macros to be used (LuaJIT's ffi.cdef and other foreign-function interfaces read it after preprocessing).
 *
 * IN TEN LINES
 *
 *     peft_context *context; peft_model *model; peft_session *session; peft_error error = PEFT_ERROR_INIT;
 *     if (peft_context_create(&context, NULL, &error)) return complain(&error);
 *     if (peft_model_open(&model, context, "model.gguf", NULL, &error)) return complain(&error);
 *     if (peft_session_create(&session, model, NULL, &error)) return complain(&error);
 *     peft_session_append_text(session, "Once upon a time", SIZE_MAX, 1, &error);
 *     peft_session_generate(session, 64, on_text, NULL, &error);        // on_text(user_data, text, size) prints
 *     peft_session_free(session); peft_model_free(model); peft_context_free(context);
 *
 * RULES THAT HOLD EVERYWHERE
 *
 * Results.  Every function that can fail returns PEFT_OK (0), PEFT_DONE (1: nothing more to give), or a negative
 *   PEFT_ERROR_… code, and writes what was wrong into `error` if that is not NULL (after a success: the code and an
 *   empty message). Out-parameters come first; after a failure they are NULL or 0, and nothing else has changed.
 *   Any function may give PEFT_ERROR_ARGUMENT, …_HANDLE and …_MEMORY; what else to expect is said at each.
 * Handles.  Objects are reached through opaque pointers that are looked up, never followed: NULL, a freed handle or one
 *   of another kind gives PEFT_ERROR_HANDLE. `…_free` accepts NULL and any order: what a child needs of its parent
 *   lives on until the child is freed. A pointer handed out through a pointer-to-pointer is yours to free.
 * Threads.  A function that takes `const` handles may run at the same time as other such functions on the same handle.
 *   A function that takes a non-const handle needs that handle to itself; if it is in use the answer is
 *   PEFT_ERROR_STATE, never a deadlock. Different sessions over one model run in parallel. Worker threads start at the
 *   first use and end with the context.
 * Callbacks.  They come on the calling thread, during the call they were given to. Non-zero cancels: the call returns
 *   PEFT_ERROR_CANCELLED and leaves everything usable. They may call the library; with the handles of the call they
 *   belong to only functions that take them `const` work (a look, a copy, a checkpoint), the others give
 *   PEFT_ERROR_STATE. The four functions of a context's options are no such callbacks: they come in the middle of
 *   things, from any thread, and must not call the library at all (it would answer PEFT_ERROR_STATE). Every callback
 *   must return: no C++ exception and no longjmp may pass through the library.
 * Text.  UTF-8. Text goes in as pointer and size in bytes; size SIZE_MAX means "up to the NUL". Text comes out in two
 *   calls: `buffer`, `capacity`, `*needed`; *needed is the size in bytes without the NUL; when needed + 1 > capacity
 *   nothing is written but *needed and the result is PEFT_OK (so `NULL, 0, &needed` asks for the size). What is written
 *   ends in NUL.
 * Options.  Structs begin with struct_size (set by the …_INIT macro or the …_init function) and only ever grow at the
 *   end; NULL means all defaults. Option sets that grow quickly are JSON text: NULL or "{}" is all defaults; a key that
 *   is not known is an error that lists the known ones (adapter configurations: a warning in the log, as PEFT does).
 * Memory.  Data-sized memory comes from the context's budget; what does not fit is PEFT_ERROR_MEMORY with the numbers.
 *   Model files are mapped, not copied.
 * Your process.  The library installs no signal handler, prints nothing, reads no environment variable, changes no
 *   locale, no floating-point mode and no other library's settings, and does not end the process, whatever it is given.
 * Results do not depend on the number of threads: the same bits for 1 and for 16.
 *
 * "since" is 1.0 for every function without a remark.
 */
#ifndef PEFTSWIFT_H
#define PEFTSWIFT_H

#include <stddef.h>
#include <stdint.h>

#define PEFT_VERSION_MAJOR 1
#define PEFT_VERSION_MINOR 0
#define PEFT_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------ results */

#define PEFT_OK 0
#define PEFT_DONE 1                /* nothing more to give: the text is complete, the data set is at its end */
#define PEFT_ERROR_ARGUMENT (-1)   /* an argument or option is out of range */
#define PEFT_ERROR_HANDLE (-2)     /* a handle is NULL, freed, or of another kind */
#define PEFT_ERROR_MEMORY (-3)     /* the memory budget or the machine has no room; detail: bytes missing */
#define PEFT_ERROR_IO (-4)         /* the operating system refused */
#define PEFT_ERROR_FORMAT (-5)     /* a file or text is malformed */
#define PEFT_ERROR_UNSUPPORTED (-6)/* well-formed, but not something this version does; the message names it */
#define PEFT_ERROR_NOT_FOUND (-7)  /* no such file, name or key */
#define PEFT_ERROR_STATE (-8)      /* not now: handle in use, already merged, no adapter active … */
#define PEFT_ERROR_CANCELLED (-9)  /* a callback or a …_cancel function stopped the call */
#define PEFT_ERROR_NUMERIC (-10)   /* a value became NaN or infinite; everything is as it was before the call */
#define PEFT_ERROR_CONTEXT_FULL (-11) /* the session's context has no room for more tokens */
#define PEFT_ERROR_MISMATCH (-12)  /* two things that must fit do not: adapter and base, checkpoint and model */
#define PEFT_ERROR_INTERNAL (-99)  /* a defect of the library; please report the message */

/* The caller's own record of an error: no allocation, no thread-local state. */
typedef struct peft_error {
  uint32_t struct_size;  /* sizeof(peft_error) */
  int32_t code;          /* what the function returned */
  int64_t detail;        /* a number that belongs to it (line, byte offset, bytes missing), or 0 */
  char message[512];     /* what was wrong, which value, what would be right; NUL-terminated UTF-8 */
} peft_error;
#define PEFT_ERROR_INIT { sizeof(peft_error), 0, 0, { 0 } }

/* "1.0.0"; constant, never freed. */
const char *peft_version(void);
/* 10000·major + 100·minor + patch of the library that is loaded; compare with the PEFT_VERSION_… of this header. */
int32_t peft_version_number(void);
/* A short text for a code ("memory"); constant. Unknown codes give "unknown". */
const char *peft_status_text(int32_t code);
/* What this build and this machine can do, as JSON: {"version", "processor": {"level", "levels"}, "weight_formats",
 * "adapter_methods", "architectures", "optimizers", "schedules"}. */
int32_t peft_features(char *buffer, size_t capacity, size_t *needed, peft_error *error);

/* ------------------------------------------------------------------------------------------------ handles */

typedef struct peft_context peft_context;      /* threads, memory, log: everything else hangs on one */
typedef struct peft_tensors peft_tensors;      /* named arrays: inputs, outputs, gradients, state dictionaries */
typedef struct peft_model peft_model;          /* a base model and its adapters */
typedef struct peft_tokenizer peft_tokenizer;
typedef struct peft_dataset peft_dataset;
typedef struct peft_trainer peft_trainer;
typedef struct peft_pass peft_pass;            /* one run of a layer in a host's own training loop, until its backward */
typedef struct peft_session peft_session;      /* one conversation: a KV cache, a sampler, a choice of adapters */

/* ------------------------------------------------------------------------------------------------ context */

#define PEFT_LOG_WARNING 1
#define PEFT_LOG_INFO 2
/* A line for the host's log, `message` valid during the call. May come from any thread that is inside a call. */
typedef void (*peft_log_fn)(void *user_data, int32_t level, const char *message);
/* The host's memory: both may be called from any thread; allocate may return NULL; alignment is a power of two ≤ 4096. */
typedef void *(*peft_allocate_fn)(void *user_data, size_t size, size_t alignment);
typedef void (*peft_deallocate_fn)(void *user_data, void *pointer, size_t size);
/* The host's own parallel-for: calls body(body_data, i) once for every i in 0…count-1, on any threads, and returns when
 * all have returned. */
typedef void (*peft_parallel_body_fn)(void *body_data, int32_t index);
typedef void (*peft_parallel_for_fn)(void *user_data, int32_t count, peft_parallel_body_fn body, void *body_data);

/* Instruction-set levels: AUTO is the processor's best; another is the highest that is used. With AVX512_BF16 asked for by name, bf16 is
 * multiplied by the instructions for it even where AUTO takes those of f32 for tensors kept in bf16: on Intel's processors without AMX (twice as
 * fast on an Emerald Rapids; on a Zen 4 half as fast).
 * AMX (tiles of bf16, Intel's processors since Sapphire Rapids): Linux wants to be asked for its registers. Creating a context of this level, or of
 * AUTO where the processor has it, asks, for the whole process; from then on sigaltstack() refuses stacks too small for them (sysconf(_SC_MINSIGSTKSZ),
 * some 11 kB). Refused, because such a stack is in use, the context is one of AVX512_BF16. */
#define PEFT_LEVEL_AUTO 0
#define PEFT_LEVEL_PORTABLE 1
#define PEFT_LEVEL_AVX2 2
#define PEFT_LEVEL_AVX512 3
#define PEFT_LEVEL_AVX512_BF16 4
#define PEFT_LEVEL_AMX 5

typedef struct peft_context_options {
  uint32_t struct_size;
  int32_t threads;               /* 0: one per processor the process may use, at most 16; 1…256 */
  uint64_t memory_budget;        /* bytes for all data-sized memory (mapped files excluded); 0: no limit */
  int32_t level;                 /* PEFT_LEVEL_… */
  int32_t reserved;              /* 0 */
  peft_log_fn log;               /* NULL: silent */
  peft_allocate_fn allocate;     /* both or neither */
  peft_deallocate_fn deallocate;
  peft_parallel_for_fn parallel_for; /* NULL: the library's own threads */
  void *user_data;               /* given to the four functions above; must outlive the context and all its objects */
} peft_context_options;
#define PEFT_CONTEXT_OPTIONS_INIT { sizeof(peft_context_options), 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL }
void peft_context_options_init(peft_context_options *options);

/* Creates a context. Contexts do not see each other. */
int32_t peft_context_create(peft_context **context, const peft_context_options *options, peft_error *error);
void peft_context_free(peft_context *context);
/* Bytes in use as JSON: {"limit" (null: none), "live", "kept", "peak", "categories": {"weights": {"live", "peak"},
 * "adapters", "gradients", "optimizer", "activations", "cache", "scratch"}}. "kept" are freed blocks held for reuse;
 * "peak" is of live + kept. */
int32_t peft_context_memory(char *buffer, size_t capacity, size_t *needed, const peft_context *context, peft_error *error);
/* Gives blocks held for reuse back to the machine and starts "peak" anew. */
int32_t peft_context_trim(const peft_context *context, peft_error *error);

/* ------------------------------------------------------------------------------------------------ named arrays */

/* Element types of arrays. Block formats of weights have the GGML numbers: 2 q4_0, 3 q4_1, 6 q5_0, 7 q5_1, 8 q8_0,
 * 10 q2_K, 11 q3_K, 12 q4_K, 13 q5_K, 14 q6_K, 20 iq4_nl, 34 tq1_0, 35 tq2_0. */
#define PEFT_F32 0
#define PEFT_F16 1
#define PEFT_I8 24
#define PEFT_I16 25
#define PEFT_I32 26
#define PEFT_I64 27
#define PEFT_F64 28
#define PEFT_BF16 30
#define PEFT_U8 1000
#define PEFT_BOOL 1001
#define PEFT_F8_E4M3 1010
#define PEFT_F8_E5M2 1011
#define PEFT_MAX_RANK 8

/* An array seen by the host: contiguous, row-major. */
typedef struct peft_array {
  uint32_t struct_size;
  int32_t type;                 /* PEFT_F32 … */
  int32_t rank;                 /* 0 … PEFT_MAX_RANK */
  int32_t reserved;
  int64_t shape[PEFT_MAX_RANK];
  const void *data;
  size_t size;                  /* bytes */
} peft_array;
#define PEFT_ARRAY_INIT { sizeof(peft_array), 0, 0, 0, { 0 }, NULL, 0 }

/* An empty collection, to be filled with peft_tensors_set and handed to forward, step, set_state … */
int32_t peft_tensors_create(peft_tensors **tensors, const peft_context *context, peft_error *error);
void peft_tensors_free(peft_tensors *tensors);
/* Copies an array in under a name, replacing one of that name. `data` may be freed afterwards. */
int32_t peft_tensors_set(peft_tensors *tensors, const char *name, int32_t type, int32_t rank, const int64_t *shape,
                         const void *data, peft_error *error);
/* The same without a copy: `data` must stay valid and unchanged until `tensors` and all that was made of it are freed. */
int32_t peft_tensors_borrow(peft_tensors *tensors, const char *name, int32_t type, int32_t rank, const int64_t *shape,
                            const void *data, peft_error *error);
/* How many; 0 for an invalid handle. */
int64_t peft_tensors_count(const peft_tensors *tensors);
/* The name of number `index`; owned by `tensors`, valid until it is changed or freed. NULL when out of range. */
const char *peft_tensors_name(const peft_tensors *tensors, int64_t index);
/* The array of a name. `array->data` is owned by `tensors` and valid until the array is replaced or `tensors` is freed: no
 * copy. Errors: PEFT_ERROR_NOT_FOUND. */
int32_t peft_tensors_get(peft_array *array, const peft_tensors *tensors, const char *name, peft_error *error);
/* Reads a safetensors file, which is mapped: it must not be changed while `tensors` lives. Errors: PEFT_ERROR_NOT_FOUND,
 * PEFT_ERROR_FORMAT. Writes one: completely or not at all (PEFT_ERROR_IO). */
int32_t peft_tensors_load(peft_tensors **tensors, const peft_context *context, const char *path, peft_error *error);
int32_t peft_tensors_save(const peft_tensors *tensors, const char *path, peft_error *error);

/* Arrays in a weight format. `options_json`: {
 *   "scheme": "nf4"|"fp4"|"int8" (a scale for each row)|"blockwise8" (bitsandbytes' dynamic map)
 *             |a GGUF type: "q4_0" … "q8_0", "q2_K" … "q6_K", "iq4_nl", "tq1_0", "tq2_0"|"f8_e4m3"|"f8_e5m2"|"f16"|"bf16"
 *   "block_size": 32 … 4096 (nf4, fp4: 64; blockwise8: 256), "double_quant": false (nf4, fp4: scales in 8 bits) }
 * The bytes are those of bitsandbytes, or of the `gguf` package where it has a quantiser. GGUF types and f8 come as one
 * array of that type; the others as bitsandbytes saves them: of "w" the codes under "w" (u8 [bytes, 1]; int8: i8), and
 * "w.absmax", "w.quant_map", "w.nested_absmax", "w.nested_quant_map", "w.quant_state.bitsandbytes__nf4" (JSON); of int8
 * "w.SCB" ("p.SCB" of "p.weight"). peft_tensors_dequantize makes f32 arrays of what either has made, or what a file holds;
 * others are taken as they are. Errors: PEFT_ERROR_ARGUMENT, also for rows that are not whole blocks;
 * PEFT_ERROR_NUMERIC for values that are not finite; PEFT_ERROR_FORMAT and …_UNSUPPORTED for parts that do not fit. */
int32_t peft_tensors_quantize(peft_tensors **quantized, const peft_tensors *tensors, const char *options_json,
                              peft_error *error);
int32_t peft_tensors_dequantize(peft_tensors **values, const peft_tensors *tensors, peft_error *error);

/* ------------------------------------------------------------------------------------------------ models */

/* Arithmetic. F32: products and activations in f32 (what conformance tests run). BF16: products of bf16 pairs with f32
 * sums (or in f32, where the processor is faster at that: see the levels above), activations stored in bf16. INT8: as
 * BF16, and while generating products with quantised weights round activations to 8 bits per 32 values. AUTO, where weights are
 * quantised or 16 bit: INT8 for generation on a processor with AVX2, BF16 for training on one with bf16 products; else F32.
 * While text is written BF16 and INT8 read copies in bf16 of what adapters add (of LoRA 2 bytes a parameter, counted as adapters; none where
 * they would take more than half of what the memory budget has left), made at the first token after the adapters changed. */
#define PEFT_COMPUTE_AUTO 0
#define PEFT_COMPUTE_F32 1
#define PEFT_COMPUTE_BF16 2
#define PEFT_COMPUTE_INT8 3

/* `done` of `total` bytes; non-zero cancels. */
typedef int32_t (*peft_progress_fn)(void *user_data, int64_t done, int64_t total);

typedef struct peft_model_options {
  uint32_t struct_size;
  int32_t compute;               /* PEFT_COMPUTE_… */
  const char *options_json;      /* NULL, or {
                                  *   "quantization": null, or what peft_model_quantize takes: quantise on load
                                  *   "bitsandbytes_cpu": false (true: nf4 and fp4 as bitsandbytes' AVX-512 kernel reads
                                  *     them, where rows are shorter than a block: all with the first block's scale. It
                                  *     costs accuracy; for comparing numbers with PEFT on a processor)
                                  *   "new_head": null, or {"type": "ForSequenceClassification"|"ForTokenClassification"|
                                  *     "ForQuestionAnswering"|"ForImageClassification", "num_labels": 2, "problem_type",
                                  *     "seed": 0}: the files' network under another head of its family. Layers outside of
                                  *     the blocks that the files lack, or have with other sizes, get random values
                                  *     (peft_model_describe names them). Adapters with the task_type SEQ_CLS or TOKEN_CLS
                                  *     train and save the head with themselves } */
  peft_progress_fn progress;     /* NULL: none */
  void *user_data;
} peft_model_options;
#define PEFT_MODEL_OPTIONS_INIT { sizeof(peft_model_options), 0, NULL, NULL, NULL }
void peft_model_options_init(peft_model_options *options);

/* Opens a GGUF file, or a Hugging Face folder (config.json with model.safetensors or its shards; weights may be those of
 * bitsandbytes in 4 or 8 bits, or of GPTQ or AWQ in 4, which become q4_0 or q5_0 of the same values; GPTQ's with groups in
 * no order f16). The files are mapped:
 * they must not be changed while the model lives (replacing them by a rename is fine). Tensors that are not used are
 * named by a warning in the log and by peft_model_describe.
 * Errors: PEFT_ERROR_NOT_FOUND; PEFT_ERROR_FORMAT, naming a tensor that is missing or misshapen; PEFT_ERROR_UNSUPPORTED,
 * naming the architecture, setting or type; PEFT_ERROR_CANCELLED. */
int32_t peft_model_open(peft_model **model, const peft_context *context, const char *path,
                        const peft_model_options *options, peft_error *error);
/* The same from a GGUF image in memory, which must stay valid and unchanged until the model and all that came from it
 * are freed. */
int32_t peft_model_open_memory(peft_model **model, const peft_context *context, const void *data, size_t size,
                               const peft_model_options *options, peft_error *error);
/* A model from what config.json would say and its weights by name, used where they are (peft_tensors_borrow: in the host's own
 * memory). `config_json` of a host's network: {"model_type": "graph", "layers": [{"name": "policy.0", "kind": "Linear"},
 * {"kind": "ReLU"}, …]} (docs/graph.md). Everything that works on an opened model works on it: adapters find its layers by
 * their names, peft_model_forward runs the graph, peft_layer_forward one layer of it. Errors: as peft_model_open. */
int32_t peft_model_create(peft_model **model, const peft_context *context, const char *config_json,
                          const peft_tensors *weights, const peft_model_options *options, peft_error *error);
void peft_model_free(peft_model *model);

/* JSON: {"architecture", "config": {…as config.json…}, "parameters", "bytes", "formats": {"q4_1": 210, …},
 * "layers": [{"name", "kind"}, …], "compute": {"training", "generation"}, "load_report": {"unused": [tensors], "new": [layers]}, "quantization": the report of
 * peft_model_quantize, or null}. */
int32_t peft_model_describe(char *buffer, size_t capacity, size_t *needed, const peft_model *model, peft_error *error);

/* The base parameters under transformers' names with their present (merged) values; quantised ones are decoded to f32.
 * `name`: one of them (PEFT_ERROR_NOT_FOUND); NULL: all, which is a lot of memory for a large quantised model. */
int32_t peft_model_state(peft_tensors **state, const peft_model *model, const char *name, peft_error *error);

/* A forward pass, without dropout unless peft_model_set_training was called.
 *
 * `inputs` by Hugging Face's names, integers of any type:
 *   "input_ids" [batch, length], and of the same shape "attention_mask" (1 token, 0 padding, on either side),
 *   "position_ids", "token_type_ids"; packed rows of a data set also have "first_key": for each token the place in its
 *   row where its sample begins. For adapters that ask for them: "task_ids" [batch] (multitask prompt tuning, POLY: the task each
 *   row is of) and "input_type_mask" [batch, length] (CPT: what each token is of an example). Networks without tokens: "x" or "pixel_values", f32 [batch, …]. Encoder-decoders: "input_ids"
 *   and "attention_mask" (Whisper: "input_features", f32 [batch, pitches, frames]) are the encoder's, "decoder_input_ids" and "decoder_attention_mask" [batch, other length] the
 *   decoder's (left out: the labels shifted by one place, without labels for tokens the encoder's ids).
 *   "labels", by the model's head: language models and token classifiers [batch, length] (-100: not learned; of a
 *   decoder its own length);
 *   classifiers [batch], or f32 numbers [batch, outputs] (`problem_type` of config.json);
 *   question answering: "start_positions" and "end_positions" [batch].
 * `options_json`: {
 *   "adapter_names": ["a", "__base__", …]        one adapter per sample (default: the active ones for all)
 *   "outputs": ["logits", "last_hidden_state", "sentence_embedding", "scalings"]   default: "logits" }
 * `outputs`, all f32:
 *   "logits" [batch, length, vocabulary], [batch, length, classes] or [batch, classes]; for question answering
 *   "start_logits" and "end_logits" [batch, length]; "last_hidden_state" [batch, length, hidden] (without a head:
 *   always); "pooler_output" [batch, hidden] where there is a pooler; "sentence_embedding" [batch, hidden] (the mean of the
 *   states of tokens, at length 1); "scalings" [batch, length, layers (1: all alike), experts], what X-LoRA gave each of its
 *   experts, where it is active; "loss" [] when there are labels (NaN when all of
 *   them are -100).
 * Errors: PEFT_ERROR_ARGUMENT naming the array, its shape or value; PEFT_ERROR_NOT_FOUND for an adapter. */
int32_t peft_model_forward(peft_tensors **outputs, const peft_model *model, const peft_tensors *inputs,
                           const char *options_json, peft_error *error);

/* What the model reads of raw pictures or recordings, as the preprocessor_config.json of its folder says: "pixel_values"
 * [n, 3, height, width] of u8 arrays [height, width, 3] (red, green, blue), resized as Pillow does, cropped, normalised; or
 * "input_features" [n, pitches, frames], Whisper's log-mel spectrograms, of f32 arrays [samples] of at most 30 s at 16 kHz.
 * `raw` holds them in the order of the batch; their names do not matter. Errors: PEFT_ERROR_NOT_FOUND when there is no such
 * file; PEFT_ERROR_ARGUMENT naming an array that is something else or too long; PEFT_ERROR_UNSUPPORTED naming a setting. */
int32_t peft_model_preprocess(peft_tensors **inputs, const peft_model *model, const peft_tensors *raw, peft_error *error);

/* Loss and gradients of the trainable parameters of the active adapters, by saved key ("adapter|key" when several are
 * active); nothing changes. `inputs` as for peft_model_forward, with labels. `options_json`: {"adapter_names"}.
 * `loss` may be NULL. Errors: also PEFT_ERROR_STATE when no active adapter is trainable. */
int32_t peft_model_gradients(peft_tensors **gradients, double *loss, const peft_model *model, const peft_tensors *inputs,
                             const char *options_json, peft_error *error);

/* 1: dropout is active in peft_model_forward and peft_model_gradients; 0 (a new model): not. Trainers and sessions have
 * their own ways. */
int32_t peft_model_set_training(peft_model *model, int32_t is_training, peft_error *error);

/* The model's tokenizer. Errors: PEFT_ERROR_NOT_FOUND when the model came without one. */
int32_t peft_model_tokenizer(peft_tokenizer **tokenizer, const peft_model *model, peft_error *error);

/* Gives the weights of linear layers another format, in place, one layer after the other. `options_json`: {
 *   "scheme", "block_size", "double_quant"   as for peft_tensors_quantize
 *   "llm_int8_threshold": 0                  of int8 (bitsandbytes: 6): products round activations to 8 bits, a scale for each
 *                                            row, but for columns in which one reaches the threshold; 0: activations stay as
 *                                            they are. Layers that are stored [in, out] do not round
 *   "calibration_text": null                 a text (its first 2048 tokens) on which outputs are compared, for the report
 *   "skip": ["lm_head", …]                   modules that stay: their names or last parts, or one regular expression for
 *                                            the whole name (default: lm_head, score, classifier, qa_outputs)
 *   "rules": [{"modules": as skip, "scheme": … or null, "block_size", "double_quant"}, …]   the first that matches a module
 *                                            counts, null: it stays; the only way to reach embeddings }
 * The report (its three parameters may be NULL, 0, NULL: peft_model_describe has it too): {"layers": [{"name", "scheme",
 * "bytes_before", "bytes", "rms", "max" (of the weights' errors), "relative" (‖error‖/‖weights‖), "output" (with a
 * calibration_text, of linear layers: ‖error of the outputs‖/‖outputs‖ on what the model as it was gives the layer)}, …],
 * "bytes_before", "bytes"}. `progress` may be NULL. Memory: old and new weights of one layer at a time.
 * Errors: PEFT_ERROR_STATE when the model has adapters; PEFT_ERROR_ARGUMENT naming a layer whose rows are not whole
 * blocks of the format; PEFT_ERROR_NUMERIC: nothing has changed then. PEFT_ERROR_CANCELLED, PEFT_ERROR_MEMORY: the layers
 * that were done keep their new format; the model is whole, and the same call goes on. */
int32_t peft_model_quantize(char *report, size_t capacity, size_t *needed, peft_model *model, const char *options_json,
                            peft_progress_fn progress, void *user_data, peft_error *error);

/* Writes the model as it is now (merged adapters included) as a Hugging Face folder: config.json, model.safetensors and
 * the tokenizer's files where the model came with them.
 * `options_json`: {"dtype": "float32"|"bfloat16"|"float16"} (default: as stored; linear layers of nf4, fp4 and int8 as
 * bitsandbytes writes them, other quantised formats as float32).
 * A path that ends in ".gguf": one GGUF file, of a model that was opened from one, or from a folder (llama, mistral, mixtral,
 * qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, with a BPE tokenizer that such files have a name for). "dtype" is then a GGUF type for all matrices
 * ("q8_0", "q4_K", "f16" …), or "Q4_K_M" or "Q5_K_M" (llama.cpp's mixes: more bits for the head, and for values and the way
 * down in some layers); rows that are not whole blocks get what llama.cpp takes instead (q4_K: q5_0, q6_K: q8_0 …).
 * Default: as stored.
 * Errors: PEFT_ERROR_IO; PEFT_ERROR_UNSUPPORTED naming what a GGUF file cannot say of the model or its tokenizer; what was there
 * before is then still there. */
int32_t peft_model_export(const peft_model *model, const char *folder, const char *options_json, peft_error *error);

/* ------------------------------------------------------------------------------------------------ adapters of a model */

/* Names of adapters are any text but "", "__base__" and one with a "|". Adapters are changed by one call at a time; what
 * is computing meanwhile goes on with what it began with. */

/* Adds an adapter with fresh weights. `config_json` is the text of PEFT's adapter_config.json ({"peft_type": "LORA",
 * "r": 8, …}): the same keys, defaults and rules for matching target modules; keys that are not known are warned of in
 * the log. The first adapter becomes active; later ones do not. `options_json`: {"seed": 0, "trainable": true}.
 * Beyond PEFT's: "init_lora_weights": "qpissa" with "loftq_config": {"loftq_bits": 4 (nf4) or 8 (int8), "loftq_iter": 1} puts
 * the principal part of a weight into the adapter and quantises the rest in the base (QPiSSA; more turns fit both anew).
 * Beside PEFT's keys PROMPT_TUNING and P_TUNING have "prompt_token_ids": an id for each virtual token, which then stands wherever
 * the text has that id, and not in front. Experts of XLORA with "use_trainable_adapters" are saved with their router.
 * UniPELT's gates, as AdapterHub has them: LORA and PREFIX_TUNING (as BOTTLENECK) have "use_gating", a prefix also "shared_gating" (true;
 * false: a gate for keys and one for values): what the adapter does at a layer is multiplied by the mean of σ(w·x + b) over the text
 * (of LORA instead of lora_alpha / r). Such an adapter is not merged; packed texts are taken apart for it.
 * Errors: PEFT_ERROR_ARGUMENT, also for a configuration that matches no module; PEFT_ERROR_UNSUPPORTED naming the
 * method or option; PEFT_ERROR_STATE when there is an adapter of that name. */
int32_t peft_adapter_add(peft_model *model, const char *name, const char *config_json, const char *options_json,
                         peft_error *error);
/* The same with a start that is computed from data: `batches` of inputs, as for peft_model_gradients; they stay the caller's.
 * "init_lora_weights": "lora_ga" (along their mean gradient: they need labels), "corda" (along the directions of W that they
 * need most, "ipm", or least, "kpm"), "eva" (A along the principal components of what layers see; ranks go to the layers whose
 * components explain most, which the configuration says afterwards; tokens labelled −100 are left out). */
int32_t peft_adapter_add_calibrated(peft_model *model, const char *name, const char *config_json, const char *options_json,
                                    const peft_tensors *const *batches, size_t batch_count, peft_error *error);

/* Loads a PEFT folder (adapter_config.json, adapter_model.safetensors), or the adapter of an HDF5 file that this library
 * wrote, or a folder of AdapterHub's `adapters` library (adapter_config.json, adapter.safetensors: bottleneck adapters, which
 * peft_adapter_add knows as "peft_type": "BOTTLENECK" with that library's keys, or "config": "double_seq_bn" …, and which are
 * saved in its format), or one file ending in ".safetensors" with LoRA, DoRA, LoHa, LoKr, whole changes ("peft_type": "FULL"),
 * OFT or BOFT of outputs ("LYCORIS_OFT"), LyCORIS' GLoRA ("LYCORIS_GLORA"), (IA)³ or changes of norms (they become "LN_TUNING")
 * under the names of kohya's scripts, LyCORIS or diffusers, which are told apart by their names. `trainable` 0: for inference.
 * The first adapter becomes active.
 * Errors: PEFT_ERROR_MISMATCH naming tensors that are missing, left over or misshapen; PEFT_ERROR_NOT_FOUND,
 * PEFT_ERROR_FORMAT, PEFT_ERROR_UNSUPPORTED, PEFT_ERROR_STATE. Nothing has changed then. */
int32_t peft_adapter_load(peft_model *model, const char *name, const char *path, int32_t trainable, peft_error *error);

/* Writes a PEFT folder that HF PEFT opens; a path that ends in ".h5": one HDF5 file. Errors: PEFT_ERROR_NOT_FOUND,
 * PEFT_ERROR_IO; what was there before is then still there. */
int32_t peft_adapter_save(const peft_model *model, const char *name, const char *path, peft_error *error);

/* The same with `options_json`: {
 *   "format": "peft" (default) | "kohya" | "diffusers": one safetensors file as kohya's scripts and LyCORIS, or diffusers, have it: LoRA
 *     and DoRA of linear layers and convolutions, LoHa, LoKr, FULL, LYCORIS_OFT, LYCORIS_GLORA, IA3 (where it scales no bias),
 *     LN_TUNING of norms; diffusers: LoRA alone. peft_adapter_load reads them
 *   "prefix": in front of modules' names: kohya "lycoris_" (or "lora_te_", "lora_unet_" …), diffusers "transformer" (or "unet" …)
 *   "initial": folder of the adapter as it began, where that took a part out of the base weights (PiSSA, OLoRA, CorDA, LoRA-GA):
 *     written is plain LoRA of twice the rank for the base as it was (PEFT's path_initial_model_for_weight_conversion) }
 * Errors: those of peft_adapter_save, PEFT_ERROR_UNSUPPORTED naming what the format cannot hold. */
int32_t peft_adapter_save_as(const peft_model *model, const char *name, const char *path, const char *options_json, peft_error *error);
int32_t peft_adapter_remove(peft_model *model, const char *name, peft_error *error);
int32_t peft_adapter_rename(peft_model *model, const char *name, const char *new_name, peft_error *error);

/* Which adapters act, in this order. `weights` NULL: all 1. count 0 (names may be NULL): none. Sessions that follow the
 * model see it at their next token; sessions with adapters of their own keep them. Errors: PEFT_ERROR_NOT_FOUND. */
int32_t peft_adapter_set_active(peft_model *model, const char *const *names, const float *weights, int64_t count,
                                peft_error *error);
/* The same as a composition, with the blocks of AdapterHub's `adapters` library and as it writes them: a name, a list (a Stack), or
 * {"type", "children": [names and blocks], "kwargs": {…}}:
 *   "Stack"                  one behind the other
 *   "Fuse"                   AdapterFusion: attention over bottleneck adapters (or Stacks of them), which is an adapter of its own:
 *                            {"peft_type": "ADAPTER_FUSION", "adapters": ["a", "b"], "config": "dynamic" or "static", …}. With
 *                            "temperature": true its scores are divided by 50, by 0.05 less after each step of training, at last
 *                            by 1; what it is now is saved with it. It is
 *                            the one named "a,b", or {"name": …}; naming it alone is the Fuse of its members. Only fusions
 *                            learn then: they are what trainers train and gradients are of, their members stay
 *   "Average"                of what its members make of each layer (y + Σ w·(yᵢ − y)) and block (Σ w·yᵢ). {"weights": [numbers] (default: all the same),
 *                            "normalize_weights": true (to a sum of 1)}
 *   "Split"                  the first so many tokens of a text to the first member, the next to the second …, all further ones to
 *                            the last. {"splits": [tokens] or one number for all}
 *   "BatchSplit"             the first so many rows of a batch to the first … {"batch_sizes": [rows] or one number for all}
 *   "Parallel"               all rows to each member: outputs have as many times the rows, the first member's first; labels are
 *                            repeated
 *   "single"                 one name; {"weight": 1}
 * A combination with a name is a Stack of adapters with the right configurations: Mix-and-Match (He et al.) of PREFIX_TUNING
 * {"prefix_projection": true, "num_virtual_tokens": 30, "encoder_hidden_size": 800} and BOTTLENECK {"config": "par_bn"}; UniPELT (Mao et
 * al.) of PREFIX_TUNING {"num_virtual_tokens": 10}, BOTTLENECK {"config": "seq_bn"} and LORA {"r": 8}, each with "use_gating": true.
 * Members are adapters of any method or blocks again. What stands in front of a text (virtual tokens, prefixes) can be in a Stack, a
 * BatchSplit or a Parallel; a Parallel is the whole or in a Stack. BatchSplit and Parallel are for batches, not for sessions.
 * An adapter is removed only after others became active. Errors: PEFT_ERROR_ARGUMENT for sizes and weights that are not one for each
 * member, an empty block, an adapter that acts twice on the same rows and tokens; PEFT_ERROR_NOT_FOUND; PEFT_ERROR_UNSUPPORTED naming
 * the member. Nothing has changed then. Of a batch with another number of rows: PEFT_ERROR_ARGUMENT from the call with it. */
int32_t peft_adapter_set_composition(peft_model *model, const char *composition_json, peft_error *error);
/* 0: the base model answers, whatever is active; 1: back again. */
int32_t peft_adapter_set_enabled(peft_model *model, int32_t is_enabled, peft_error *error);
/* The adapter acts `factor` times as strongly as its configuration says (PEFT's set_scale); 1: as configured. */
int32_t peft_adapter_set_scale(peft_model *model, const char *name, float factor, peft_error *error);
/* Whether trainers may change it. */
int32_t peft_adapter_set_trainable(peft_model *model, const char *name, int32_t is_trainable, peft_error *error);

/* The adapter methods there are, JSON: {"methods": [{"peft_type", "layers": kinds of layers it adapts ("Linear", "Conv1D",
 * "Embedding", "Conv2d" …; "*": all), "options": {every key of adapter_config.json that is the method's own: PEFT's default},
 * "default_targets": {model_type: what null target_modules means}}, …]}. */
int32_t peft_adapter_list_methods(char *buffer, size_t capacity, size_t *needed, peft_error *error);
/* JSON: {"enabled", "active": [{"name", "weight"}], "composition": as peft_adapter_set_composition has it (null: one behind the
 * other), "merged": [names], "trainable_parameters", "all_parameters",
 * "adapters": {name: {"peft_type", "trainable", "parameters", "layers": ["model.layers.0.self_attn.q_proj", …]}},
 * "merge_report": of the last peft_model_merge, null when nothing is merged}. */
int32_t peft_adapter_status(char *buffer, size_t capacity, size_t *needed, const peft_model *model, peft_error *error);
/* The configuration as it would be saved: the text of adapter_config.json. */
int32_t peft_adapter_config(char *buffer, size_t capacity, size_t *needed, const peft_model *model, const char *name,
                            peft_error *error);
/* What would be saved, by saved key; copies. */
int32_t peft_adapter_state(peft_tensors **state, const peft_model *model, const char *name, peft_error *error);
/* The trainable parameters of the active adapters, by saved key ("adapter|key" when several are active); copies. */
int32_t peft_adapter_parameters(peft_tensors **parameters, const peft_model *model, peft_error *error);
/* Sets tensors by saved key; keys may be left out. Errors: PEFT_ERROR_MISMATCH for a key that the adapter does not have
 * and for another shape or type. Nothing has changed then. */
int32_t peft_adapter_set_state(peft_model *model, const char *name, const peft_tensors *state, peft_error *error);
/* Gives a prefix (PREFIX_TUNING without projection) or a cartridge the keys and values that the base model itself has for the
 * first tokens of `text`, as many as the adapter has virtual tokens: what follows is then answered as if it stood behind that
 * text, and training goes on from there. Errors: PEFT_ERROR_ARGUMENT for a text with fewer tokens than that;
 * PEFT_ERROR_UNSUPPORTED for other adapters and for models that do not generate. */
int32_t peft_adapter_fill(peft_model *model, const char *name, const char *text, peft_error *error);

/* Folds adapters (count 0: the active ones) into the base weights, layer by layer; those that are merged already stay so.
 * Quantised weights are quantised again, and the report says how much of the change survived:
 * {"layers": [{"name", "kept"}, …], "kept"}, "kept" being the share of the change's norm that is in the new weight.
 * The report's three parameters may be NULL, 0, NULL: peft_adapter_status has it too.
 * `options_json`: {"safe": false (true: a result that is not finite is PEFT_ERROR_NUMERIC), "dtype": null (a weight
 * format of peft_features: what quantised weights become; four bits keep little of an adapter, "q8_0" nearly all),
 * "residue": null (a name: what quantised weights do not hold is kept in a LoRA of that name, which acts until the merge is
 * undone and goes with it), "svd_rank": 8 or "svd_energy" (of the residue, as for peft_adapter_combine)}. With a residue the
 * report has "kept_with_residue" too.
 * Errors: PEFT_ERROR_NOT_FOUND; PEFT_ERROR_STATE when there is nothing to merge; PEFT_ERROR_UNSUPPORTED. Nothing has
 * changed then. */
int32_t peft_model_merge(char *report, size_t capacity, size_t *needed, peft_model *model, const char *const *names,
                         int64_t count, const char *options_json, peft_error *error);
/* Gives back the exact weights from before all merges. Errors: PEFT_ERROR_STATE when nothing is merged. */
int32_t peft_model_unmerge(peft_model *model, peft_error *error);
/* Merges the active adapters for good and removes all adapters; modules trained in full take the originals' place, and
 * quantised weights that change become q8_0. */
int32_t peft_model_merge_and_unload(peft_model *model, peft_error *error);

/* ------------------------------------------------------------------------------------------------ combining adapters */

/* All of these go layer by layer, with one layer in memory. `progress` (may be NULL) is called after each; non-zero stops:
 * PEFT_ERROR_CANCELLED. It must not call the library with the same model. After any error nothing has changed or been written.
 *
 * The report's three parameters may be NULL, 0, NULL. Of calls that make something it is written once: 160 bytes a layer are
 * enough; what does not fit is lost, the rest of the call is not. It is {"layers": [{"name", "rank", "error"}, …], "error",
 * "rank"}, "error" being ‖ΔW − s·B·A‖ / ‖ΔW‖ (Frobenius): what the rank leaves out of the change of a layer, and of all.
 *
 * Ways to combine, "combination_type" of `options_json`, with ΔWᵢ = sᵢ·Bᵢ·Aᵢ and weights wᵢ (as in PEFT's add_weighted_adapter):
 *   "svd" (default), "task_arithmetic"   the nearest of its rank to Σ wᵢ·ΔWᵢ
 *   "cat"                                exactly Σ wᵢ·ΔWᵢ; ranks add up
 *   "linear"                             A = Σ sgn(wᵢsᵢ)·√|wᵢsᵢ|·Aᵢ, B = Σ √|wᵢsᵢ|·Bᵢ; one rank
 *   "ties", "dare_linear", "dare_ties", "magnitude_prune"   the same after pruning (and an election of signs: ties)
 *   "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd", "della", "della_linear", "breadcrumbs",
 *   "breadcrumbs_ties"                   of the ΔWᵢ themselves
 *   "slerp"                              two, along the arc between them; t = w₂/(w₁ + w₂)
 * Other options: "density" (0, 1]: the share that pruning leaves, needed where there is one; "majority_sign_method": "total" or
 * "frequency"; "epsilon" (della: density ± epsilon; default half of what is possible), "gamma" (breadcrumbs: share of the
 * largest taken out; default 0.01), "seed": 0 (of what is random); "svd_rank" (default: the largest of the adapters') or
 * "svd_energy" (0, 1]: per layer the fewest directions with that share of Σσ²; "svd_clamp": quantile at which values of the
 * factors are cut off; "layer_weights": {name of layers as in rank_pattern: a factor for each adapter's weight there}. An option
 * without a meaning for the combination is PEFT_ERROR_ARGUMENT.
 * Weights may be negative (subtraction); NULL: all 1. Of one adapter "svd" with "svd_rank" is conversion or resizing. */

/* A new adapter of adapters of this model; it is not active and not trained. Methods other than LoRA, and different ones
 * together, go through their exact changes of the weights ("svd", "…_svd", "slerp" …) and become LoRA; (IA)³ without
 * options stays (IA)³ (vectors are added up). A module trained in full is kept from the one adapter that has it.
 * Errors: PEFT_ERROR_ARGUMENT, PEFT_ERROR_NOT_FOUND, PEFT_ERROR_STATE (`new_name` is taken), PEFT_ERROR_NUMERIC (NaN),
 * PEFT_ERROR_UNSUPPORTED: what cannot be a change of weights (virtual tokens, norms, target_parameters, PiSSA's residual). */
int32_t peft_adapter_combine(char *report, size_t capacity, size_t *needed, peft_model *model, const char *new_name,
                             const char *const *names, const float *weights, int64_t count, const char *options_json,
                             peft_progress_fn progress, void *user_data, peft_error *error);
/* A new LoRA of what full fine-tuning did: the weights of `tuned` minus those of `model`, whatever formats the two have.
 * `options_json`: "svd_rank" or "svd_energy", which must be there; "target_modules" (default "all-linear"). The report has
 * "left_out" too: tensors outside of the targets that differ. Errors: PEFT_ERROR_MISMATCH for another architecture. */
int32_t peft_adapter_extract(char *report, size_t capacity, size_t *needed, peft_model *model, const char *new_name,
                             const peft_model *tuned, const char *options_json, peft_progress_fn progress, void *user_data,
                             peft_error *error);
/* LoRA adapters in files (PEFT folders, HDF5) become one, at `path`, without their model: added, subtracted, and of one, scaled,
 * pruned, resized. Cartridges become one that has the tokens of all, in this order ("cat" alone; the report is {"virtual_tokens"}).
 * Errors: as above; PEFT_ERROR_MISMATCH for adapters of different models; PEFT_ERROR_IO. */
int32_t peft_adapter_combine_files(char *report, size_t capacity, size_t *needed, const peft_context *context, const char *path,
                                   const char *const *paths, const float *weights, int64_t count, const char *options_json,
                                   peft_progress_fn progress, void *user_data, peft_error *error);
/* How alike two LoRA adapters in files are: {"layers": [{"name", "cosine" (of the ΔW), "norm_a", "norm_b", "overlap_in",
 * "overlap_out" (of the subspaces they read and write, 0 … 1)}, …], "cosine", "only_a": [names], "only_b": [names]}. */
int32_t peft_adapter_compare_files(char *report, size_t capacity, size_t *needed, const peft_context *context, const char *path,
                                   const char *other, peft_error *error);

/* ------------------------------------------------------------------------------------------------ tokenizers */

/* Tokenizers do not change: all functions may run at the same time. */

/* Opens tokenizer.json (the file, or the folder it is in, with tokenizer_config.json and chat_template.jinja), or the
 * tokenizer of a GGUF file. Errors: PEFT_ERROR_NOT_FOUND, PEFT_ERROR_FORMAT, PEFT_ERROR_UNSUPPORTED naming the
 * component. */
int32_t peft_tokenizer_open(peft_tokenizer **tokenizer, const peft_context *context, const char *path, peft_error *error);
void peft_tokenizer_free(peft_tokenizer *tokenizer);
/* JSON: {"vocabulary_size", "bos_token_id", "eos_token_id", "eos_token_ids", "pad_token_id", "unk_token_id" (null where
 * there is none), "chat_template": true|false}. */
int32_t peft_tokenizer_describe(char *buffer, size_t capacity, size_t *needed, const peft_tokenizer *tokenizer,
                                peft_error *error);
/* Text to ids: two-call form counted in ids (nothing is written when *needed > capacity). Invalid UTF-8 is read as
 * U+FFFD. Special tokens that are written in the text become their ids. */
int32_t peft_tokenizer_encode(int32_t *ids, size_t capacity, size_t *needed, const peft_tokenizer *tokenizer,
                              const char *text, size_t size, int32_t add_special_tokens, peft_error *error);
/* Ids to text. Errors: PEFT_ERROR_ARGUMENT for an id that is not in the vocabulary (detail: the id). */
int32_t peft_tokenizer_decode(char *buffer, size_t capacity, size_t *needed, const peft_tokenizer *tokenizer,
                              const int32_t *ids, size_t count, int32_t skip_special_tokens, peft_error *error);
/* A chat template applied to messages: a JSON array of {"role", "content"}. `options_json`: {
 *   "add_generation_prompt": true, "chat_template": "…" (default: the model's), "tools", "documents",
 *   and any variable that the template reads }
 * Errors: PEFT_ERROR_STATE when there is no template; PEFT_ERROR_UNSUPPORTED naming a construct of it. */
int32_t peft_tokenizer_chat(char *buffer, size_t capacity, size_t *needed, const peft_tokenizer *tokenizer,
                            const char *messages_json, const char *options_json, peft_error *error);

/* ------------------------------------------------------------------------------------------------ data sets */

/* Opens a file of training text. It is read piece by piece and must not change while it is open. `options_json`: {
 *   "format": "auto"        "jsonl": lines with "messages", "prompt" and "completion", or "text", and "task_id" where an adapter
 *                           has several tasks (packed rows are of one); "csv": those columns;
 *                           "text": plain text, cut into blocks; "auto": by the ending of the name
 *   "max_length": 512, "truncation": "keep_start"|"keep_end"|"split"|"drop"|"error"
 *   "batch_size": 1, "packing": false (several samples a row), "shuffle": true, "seed": 0
 *   "encoder_decoder": false (true: the encoder reads the prompt, the decoder learns to write the completion)
 *   "loss_on": "assistant" (and completions)|"all"
 *   "holdout": 0.0 (share of the records held out) or "holdout_every": n, "split": "train"|"holdout"
 *   "on_bad_line": "error"|"skip", "max_line_bytes": 67108864
 *   "chat_template": "…" (default: the model's) }
 * Errors: PEFT_ERROR_NOT_FOUND; PEFT_ERROR_FORMAT with the number of the line (detail), or for a file without samples. */
int32_t peft_dataset_open(peft_dataset **dataset, const peft_tokenizer *tokenizer, const char *path,
                          const char *options_json, peft_error *error);
/* The same from memory, which is copied ("auto" is plain text). */
int32_t peft_dataset_open_memory(peft_dataset **dataset, const peft_tokenizer *tokenizer, const char *data, size_t size,
                                 const char *options_json, peft_error *error);
void peft_dataset_free(peft_dataset *dataset);
/* JSON: {"records", "batches_per_epoch", "epoch", "position" (records of the epoch that are used up), "skipped_lines"}.
 * The first call goes through the data to count the batches. */
int32_t peft_dataset_describe(char *buffer, size_t capacity, size_t *needed, const peft_dataset *dataset,
                              peft_error *error);
/* The next batch as inputs of peft_trainer_step and peft_model_forward ("input_ids", "attention_mask", "labels"; of packed
 * rows also "position_ids" and "first_key"; i64). PEFT_DONE (and NULL) once at the end of each epoch. */
int32_t peft_dataset_next(peft_tensors **batch, peft_dataset *dataset, peft_error *error);

/* ------------------------------------------------------------------------------------------------ training */

/* What one step did. */
typedef struct peft_step {
  uint32_t struct_size;
  int32_t updated;          /* 1: the optimizer ran; 0: gradients were accumulated */
  int64_t step;             /* optimizer steps so far */
  int64_t tokens;           /* tokens in this micro-batch, padding excluded */
  double loss;              /* of this micro-batch */
  double gradient_norm;     /* before clipping; 0 when not updated */
  double learning_rate;     /* used for this update */
} peft_step;
#define PEFT_STEP_INIT { sizeof(peft_step), 0, 0, 0, 0.0, 0.0, 0.0 }

/* Where a run stands. */
typedef struct peft_training_progress {
  uint32_t struct_size;
  int32_t reserved;
  int64_t step, total_steps, epoch;
  double loss;              /* smoothed over the last steps */
  double evaluation_loss;   /* latest, NaN before the first */
  double learning_rate;
  double tokens_per_second;
  double seconds, seconds_left;
  uint64_t memory, memory_peak; /* bytes of the context's budget */
} peft_training_progress;
/* After each update; `progress` is valid during the call. Non-zero stops the run: PEFT_ERROR_CANCELLED, the adapter as
 * after this update, and another call goes on. */
typedef int32_t (*peft_training_fn)(void *user_data, const peft_training_progress *progress);

/* A trainer for adapters of a model. Sessions may run over the model meanwhile; they see each update as a whole.
 * `options_json`, with the names of transformers' TrainingArguments: {
 *   "adapter": name (default: the active ones), or "adapters": [names] that learn at once (peft_trainer_step_rows)
 *   "optimizer": "adamw"|"adamw8bit" (moments in 8 bits, as bitsandbytes)|"adafactor" (as transformers' Trainer)|"lion"|
 *     "sgd"|"lorafa", "lr": 2e-4, "betas": [0.9, 0.999] (lion: [0.9, 0.99]), "eps": 1e-8, "weight_decay": 0.0,
 *   "momentum": 0.0 (sgd), "lorafa": {"r", "lora_alpha"} (as in PEFT, each layer's own scaling is what counts),
 *   "riemannian_reg": null (PEFT's is 0.01: gradients of LoRA's pairs are preconditioned by their factors before any of these),
 *   "loraplus_lr_ratio": null, "loraplus_lr_embedding": 1e-6, "loraplus_weight_decay": null,
 *   "lr_scheduler": "linear"|"cosine"|"constant"|"constant_with_warmup", "warmup_steps": 0
 *   "max_steps": null, "epochs": 1 (without max_steps), "gradient_accumulation_steps": 1, "max_grad_norm": 1.0 (null: none)
 *   "gradient_checkpointing": "auto" (by the memory budget)|true|false, "seed": 0
 *   "dropout": true|false|"mode" (steps of the host's own as peft_model_set_training says, runs with it): all that is random
 *   "int8_activations": false (forward products of linear layers and the head with frozen weights of 16 bits or fewer round activations to
 *     8 bits per 192 values and weights to 8 bits per row, with AVX512-VNNI faster than bf16; gradients and evaluations are
 *     bf16's, and so is everything with AMX, which is faster still, and layers whose weight itself an adapter changes: HIRA, GLORA, SHIRA,
 *     SUPERTUNING. For models that train in bf16; PEFT_ERROR_UNSUPPORTED elsewhere)
 *   "evaluation_steps": null, "early_stopping_patience": null (the run then ends with the best adapter) }
 * Errors: PEFT_ERROR_STATE when no adapter is active or none is trainable; PEFT_ERROR_NOT_FOUND. */
int32_t peft_trainer_create(peft_trainer **trainer, peft_model *model, const char *options_json, peft_error *error);
void peft_trainer_free(peft_trainer *trainer);

/* One micro-batch, forward and backward; after gradient_accumulation_steps of them an update. `inputs` as for
 * peft_model_forward, with labels. Errors: PEFT_ERROR_ARGUMENT naming what does not fit, or when no label is to be
 * learned; PEFT_ERROR_NUMERIC when loss or gradients are not finite; PEFT_ERROR_MEMORY with what the step needs. The
 * adapter and the optimizer are then as they were; what was accumulated for the update is dropped. */
int32_t peft_trainer_step(peft_step *step, peft_trainer *trainer, const peft_tensors *inputs, peft_error *error);
/* The same with an adapter for each of the `count` rows, of whatever methods: those of the trainer learn from their rows, others
 * act ("__base__": none). The loss is the mean over the batch. Errors: PEFT_ERROR_NOT_FOUND for a name, PEFT_ERROR_ARGUMENT
 * for another count than the batch's. */
int32_t peft_trainer_step_rows(peft_step *step, peft_trainer *trainer, const peft_tensors *inputs, const char *const *adapters,
                               int64_t count, peft_error *error);

/* Trains over a data set until max_steps or epochs are done. `evaluation` (may be NULL) is scored every evaluation_steps
 * and at the end; its position does not move. `progress` may be NULL. A run that is complete returns PEFT_OK at once.
 * Errors: PEFT_ERROR_CANCELLED, those of peft_trainer_step and of the data set; another call goes on from there. */
int32_t peft_trainer_run(peft_trainer *trainer, peft_dataset *dataset, const peft_dataset *evaluation,
                         peft_training_fn progress, void *user_data, peft_error *error);
/* For hosts that own the loop: as peft_trainer_run, but returns PEFT_OK when about `seconds` (0 or more) are over, after at
 * least one micro-batch, and PEFT_DONE when the run is complete. */
int32_t peft_trainer_advance(peft_step *step, peft_trainer *trainer, peft_dataset *dataset, double seconds,
                             peft_error *error);
/* Mean loss per labelled token over a data set, without dropout; perplexity = exp(loss). */
int32_t peft_trainer_evaluate(double *loss, peft_trainer *trainer, const peft_dataset *dataset, peft_error *error);

/* What a step on `batch` rows of `length` tokens takes, before any is taken: JSON {"total", "weights", "adapters",
 * "gradients", "optimizer", "activations", "cache", "scratch", "gradient_checkpointing": true|false,
 * "recomputed_blocks" (of the model, from the first on: with "auto" as few as the budget allows), "limit" (null: none),
 * "fits"}. */
int32_t peft_trainer_plan(char *buffer, size_t capacity, size_t *needed, const peft_trainer *trainer, int64_t batch,
                          int64_t length, peft_error *error);

/* Everything a later process needs to go on as if nothing had happened, in one HDF5 file: adapter, optimizer, schedule,
 * random streams, position in `dataset` (may be NULL). peft_adapter_load reads the adapter of it.
 * Errors: PEFT_ERROR_IO; what was there before is then still there. */
int32_t peft_trainer_save(const peft_trainer *trainer, const peft_dataset *dataset, const char *path, peft_error *error);
/* Continues from such a file: sets the trainer's adapter, optimizer and streams, and the position of `dataset` (may be
 * NULL). Errors: PEFT_ERROR_MISMATCH naming the difference of base model, adapter, options or data; PEFT_ERROR_FORMAT,
 * PEFT_ERROR_NOT_FOUND. Nothing has changed then. */
int32_t peft_trainer_resume(peft_trainer *trainer, peft_dataset *dataset, const char *path, peft_error *error);
/* From any thread: the running peft_trainer_run, …_advance or …_evaluate ends with PEFT_ERROR_CANCELLED after the present
 * step; if none runs, the next one does at once. */
int32_t peft_trainer_cancel(const peft_trainer *trainer, peft_error *error);

/* ------------------------------------------------------------------------------------------------ single layers */

/* For networks whose host computes everything but the adapted layers. A training step of its own:
 *
 *     peft_layer_forward(y, size, &pass, model, "policy.0", &x, trainer, &error);   // y, with what adapters do
 *     …the host's activation, next layers, loss; then back again…
 *     peft_layer_backward(dx, size, pass, dy, size, &error);                        // gradients gather in the trainer
 *     peft_trainer_update(&step, trainer, &error);                                  // clip, schedule, optimizer
 *     peft_pass_free(pass);
 */

/* y = layer(x) with the adapters of `trainer`, or (NULL) the active ones. `x`: f32, by the layer's kind [rows, in],
 * [batch, channels, sizes…], or for an embedding integers; a bias and an embedding's or convolution's shape are the layer's.
 * `y` receives `count` floats, which must be the result's number: [rows, out], [batch, out, sizes…], [ids, width].
 * `pass` NULL: nothing is kept, and `x` is not copied. Else it keeps y and what the backward pass reads; y may be NULL then.
 * Errors: PEFT_ERROR_NOT_FOUND for a layer; PEFT_ERROR_ARGUMENT naming the shape or the count that is right. */
int32_t peft_layer_forward(float *y, size_t count, peft_pass **pass, const peft_model *model, const char *layer,
                           const peft_array *x, peft_trainer *trainer, peft_error *error);
/* The result again: `y->data` is owned by `pass`. For callers that do not know its shape before (y NULL above, count 0). */
int32_t peft_pass_output(peft_array *y, const peft_pass *pass, peft_error *error);
/* The derivative: adds the gradients of the adapters' parameters to the trainer's, and writes that of x to `dx` (`dx_count`
 * floats; NULL: not wanted). Once for each pass. Errors: PEFT_ERROR_STATE the second time; PEFT_ERROR_ARGUMENT for a
 * count. */
int32_t peft_layer_backward(float *dx, size_t dx_count, peft_pass *pass, const float *dy, size_t dy_count, peft_error *error);
void peft_pass_free(peft_pass *pass);
/* Updates the trainer's parameters by the gradients gathered since the last update (gradient_accumulation_steps does not
 * count here). `step->loss` is 0. Errors: PEFT_ERROR_NUMERIC when gradients are not finite: they are dropped. */
int32_t peft_trainer_update(peft_step *step, peft_trainer *trainer, peft_error *error);
/* The gathered gradients by saved key, for hosts with an optimizer of their own (peft_adapter_set_state takes the new
 * values). `is_cleared` 1: the sums begin anew. */
int32_t peft_trainer_gradients(peft_tensors **gradients, peft_trainer *trainer, int32_t is_cleared, peft_error *error);

/* ------------------------------------------------------------------------------------------------ sessions */

/* A piece of text as it is made: whole UTF-8 characters, not NUL-terminated, valid during the call. Non-zero stops. */
typedef int32_t (*peft_text_fn)(void *user_data, const char *text, size_t size);
/* The same from session number `index` of peft_sessions_next. */
typedef int32_t (*peft_texts_fn)(void *user_data, int64_t index, const char *text, size_t size);

/* One conversation over a model; different sessions run in parallel. `options_json`: {
 *   "context_length": 2048 (at most the model's)
 *   "temperature": 0 (greedy), "top_k": 0 (all), "top_p": 1, "min_p": 0, "repetition_penalty": 1, "seed": 0
 *   "suppress_tokens": [] (ids that are never chosen)
 *   "stop": ["…"] (end the answer, and are not part of it), "ignore_eos": false
 *   "task_id": null (of a multitask prompt or POLY: the task the text is of)
 *   "prompt_lookup_num_tokens": 0 (to 7: so many tokens are guessed from what followed the same words earlier, and read with
 *                               the one before them; the text is the same, sooner where it repeats itself)
 *   "kv_cache_type": "f32"|"bf16"|"q8_0" (how keys and values are kept; default: as the model computes. q8_0, 32 values in 34
 *                    bytes, is about half of bf16, and read as it is; a head whose size is no multiple of 32 is filled up)
 *   "fold_adapters": false (true: linear layers whose whole weight one adapter changes (HIRA, VERA, OFT, LOKR …; not what is of low rank) have a copy of
 *                    it with that change, so that no token computes it anew. Copies are made when the session first reads after adapters or weights
 *                    changed, in about half a second to four for a model of 135 million parameters; sessions share them, and they go with the last that asked.
 *                    8 bits a value where the model's are quantised and compute is INT8, else as it computes, counted as adapters; PEFT_ERROR_MEMORY
 *                    where they do not fit. Prompts of more than 8 tokens are read as without, and
 *                    so is a layer on which several adapters act)
 *   "gates": "text"|"call" (of adapters with "use_gating", whose gates are means over a text. "text": over all of it, as in a forward
 *            pass: with each token all before it changes, and is read anew. "call": over what one call reads, then each token by
 *            itself, as AdapterHub's library writes with its cache: nothing is read twice, and sessions can step together)
 *   "on_full": "stop"|"shift" (drop the oldest tokens after the first "keep"), "keep": 4
 *   "adapters": [names] ([]: the base model; default: those active in the model, followed as they change), or a block of
 *                            peft_adapter_set_composition }
 * Errors: PEFT_ERROR_UNSUPPORTED for a model that does not generate; PEFT_ERROR_NOT_FOUND for an adapter. */
int32_t peft_session_create(peft_session **session, const peft_model *model, const char *options_json, peft_error *error);
void peft_session_free(peft_session *session);

/* Reads tokens: the cache is filled, nothing is sampled. What an encoder-decoder reads first is its source: the encoder
 * reads it, and the decoder its start token; what is appended later the decoder reads. Errors: PEFT_ERROR_ARGUMENT for ids that the model does not have;
 * PEFT_ERROR_CONTEXT_FULL when there is no room. Nothing was read then. */
int32_t peft_session_append(peft_session *session, const int32_t *ids, size_t count, peft_error *error);
/* The source of an encoder-decoder: "input_features" [1, pitches, frames] of a recording, or "input_ids" [1, length]. The session
 * begins anew: the decoder reads its start token, and then what is appended (Whisper: what to do, "<|notimestamps|>" …).
 * Errors: PEFT_ERROR_ARGUMENT for a model without an encoder, and naming the shape that is right. */
int32_t peft_session_read_source(peft_session *session, const peft_tensors *inputs, peft_error *error);
/* Reads text. Errors: also PEFT_ERROR_STATE when the model came without a tokenizer. */
int32_t peft_session_append_text(peft_session *session, const char *text, size_t size, int32_t add_special_tokens,
                                 peft_error *error);
/* Reads a whole conversation (messages as for peft_tokenizer_chat) up to the start of the assistant's next turn. What the
 * session holds already is not read again: a conversation that grew by a turn costs that turn. */
int32_t peft_session_append_chat(peft_session *session, const char *messages_json, peft_error *error);

/* Pull: samples one token and reads it. PEFT_DONE at an end-of-sequence token (which is not read) or a stop string.
 * `buffer` receives the text that became complete, maybe none; what does not fit comes with the next call. Its capacity is
 * at least 256, or it is NULL. *token is -1 when there is none: after a failure, for left-over text, after the end.
 * Errors: PEFT_ERROR_STATE before anything was read; PEFT_ERROR_CONTEXT_FULL; PEFT_ERROR_CANCELLED. */
int32_t peft_session_next(int32_t *token, char *buffer, size_t capacity, size_t *needed, peft_session *session,
                          peft_error *error);
/* Push: up to `max_tokens` tokens, text through `callback` (may be NULL) as it is made. PEFT_DONE when the model ended by
 * itself, PEFT_OK after max_tokens. Errors: as peft_session_next; the tokens so far stay. */
int32_t peft_session_generate(peft_session *session, int64_t max_tokens, peft_text_fn callback, void *user_data,
                              peft_error *error);
/* Several sessions of one model (1 to 4096 different ones) take one step together: one pass over the weights serves all,
 * whatever adapters each has. Samples one token for each and reads it; tokens[i] (may be NULL) is the token of session i,
 * -1 when its answer had ended before. `callback` (may be NULL) receives the text that became complete. PEFT_DONE when
 * every answer has ended. An error: no session has read a token; PEFT_ERROR_CANCELLED from the callback: all have. */
int32_t peft_sessions_next(int32_t *tokens, peft_session *const *sessions, int64_t count, peft_texts_fn callback,
                           void *user_data, peft_error *error);

/* Adapters for this session alone, from the next token on; the cache stays. count 0: none (the base model). `weights`
 * NULL: all 1. An adapter that is removed from the model later is PEFT_ERROR_NOT_FOUND at the next token. */
int32_t peft_session_set_adapters(peft_session *session, const char *const *names, const float *weights, int64_t count,
                                  peft_error *error);
/* New options, the keys of peft_session_create but "context_length", "kv_cache_type" and "adapters"; those left out stay. */
int32_t peft_session_configure(peft_session *session, const char *options_json, peft_error *error);
/* Forgets all tokens but the first `keep` (0: an encoder-decoder's source too). */
int32_t peft_session_rewind(peft_session *session, int64_t keep, peft_error *error);
/* A copy that goes its own way from here. */
int32_t peft_session_fork(peft_session **copy, const peft_session *session, peft_error *error);
/* The logits of the next token: "logits", f32 [vocabulary]. Errors: PEFT_ERROR_STATE before anything was read. */
int32_t peft_session_logits(peft_tensors **logits, const peft_session *session, peft_error *error);
/* JSON: {"tokens", "context_length", "generated", "prompt_tokens_per_second", "tokens_per_second", "cache_bytes",
 * "kv_cache_type", "adapters": [{"name", "weight"}], "composition", "follows_model"}. */
int32_t peft_session_describe(char *buffer, size_t capacity, size_t *needed, const peft_session *session,
                              peft_error *error);
/* The ids the session holds: two-call form counted in ids. */
int32_t peft_session_tokens(int32_t *ids, size_t capacity, size_t *needed, const peft_session *session, peft_error *error);
/* From any thread: the running call ends with PEFT_ERROR_CANCELLED after the present token; if none runs, the next one
 * does at once. */
int32_t peft_session_cancel(const peft_session *session, peft_error *error);

#ifdef __cplusplus
}
#endif

#endif
