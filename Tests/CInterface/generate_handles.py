"""Writes a C program that calls every function of the header with every kind of wrong handle and wrong argument.

Each call is made with arguments that are right but for one:
  a handle that is NULL, freed, of another kind, or no handle at all   ->  PEFT_ERROR_HANDLE, out-parameters NULL or 0
  a pointer that is NULL, an integer or number at the end of its range ->  any status; the process lives
"""

import sys

from header import HANDLES, functions

#: Handles that may be NULL: (function, parameter).
OPTIONAL = {("peft_trainer_run", "evaluation"), ("peft_trainer_save", "dataset"), ("peft_trainer_resume", "dataset"), ("peft_layer_forward", "trainer"),
            ("peft_layer_forward", "pass")}

#: Arguments that are right, by function and parameter or by parameter.
ARGUMENTS = {
    ("peft_tensors_set", "type"): "PEFT_I64", ("peft_tensors_set", "name"): '"input_ids"', ("peft_tensors_set", "data"): "ids64",
    ("peft_tensors_get", "name"): '"input_ids"', ("peft_tensors_get", "array"): "&array",
    ("peft_tensors_load", "path"): 'SCRATCH("arrays.safetensors")', ("peft_tensors_save", "path"): 'SCRATCH("saved.safetensors")',
    ("peft_adapter_load", "path"): 'SCRATCH("adapter")', ("peft_adapter_load", "name"): '"loaded"', ("peft_adapter_add", "name"): '"added"',
    ("peft_adapter_save", "path"): 'SCRATCH("saved")', ("peft_adapter_save_as", "path"): 'SCRATCH("saved")', ("peft_adapter_rename", "new_name"): '"a"', ("peft_trainer_save", "path"): 'SCRATCH("saved.h5")',
    ("peft_trainer_resume", "path"): 'SCRATCH("checkpoint.h5")', ("peft_dataset_open", "path"): 'MODEL_FILE("conversations.jsonl")',
    ("peft_pass_output", "y"): "&array", ("peft_layer_forward", "count"): "32", "y": "values", "layer": '"model.layers.0.self_attn.q_proj"', "x": "&input",
    "dx": "values", "dx_count": "32", "dy": "values", "dy_count": "32", "is_cleared": "0", ("peft_adapter_set_state", "state"): "live_state", ("peft_adapter_combine_files", "path"): 'SCRATCH("combined")',
    ("peft_trainer_step_rows", "adapters"): "names", ("peft_adapter_compare_files", "path"): 'SCRATCH("adapter")', ("peft_model_state", "name"): '"model.norm.weight"',
    "path": "model_folder", "folder": 'SCRATCH("exported")', "name": '"a"', "config_json": "lora", "composition_json": '"{\\"type\\": \\"Average\\", \\"children\\": [\\"a\\"]}"', "messages_json": '"[{\\"role\\": \\"user\\", \\"content\\": \\"who\\"}]"',
    "options_json": "NULL", "rank": "2", "shape": "shape", "text": '"iron"', "data": "lines", "names": "names", "weights": "NULL", "count": "1", "ids": "ids32",
    "size": "4", "index": "0", "seconds": "0", "batch": "1", "length": "8", "max_tokens": "2", "keep": "1", "factor": "1", "capacity": "sizeof text",
    "buffer": "text", "report": "text", "needed": "&needed", "token": "&id", "tokens": "&id", "loss": "&number", "step": "&step", "options": "NULL", "user_data": "NULL",
    "progress": "NULL", "batch_count": "1", "new_name": '"made"', "paths": "paths", "other": 'SCRATCH("adapter")', "callback": "NULL", "level": "1",
}
#: Sizes and counts of memory that the caller promises is there: not to be lied about.
PROMISES = {"size", "count", "capacity", "rank", "batch_count", "dx_count", "dy_count"}
EXTREMES = {"int32_t": ["INT32_MIN", "-1", "INT32_MAX"], "int64_t": ["INT64_MIN", "-1", "INT64_MAX"], "float": ["NAN", "INFINITY", "-1e38f"],
            "double": ["NAN", "INFINITY", "-1e300"]}

PRELUDE = r"""#include "fixtures.h"

static peft_context *live_context;
static peft_model *live_model;
static peft_tokenizer *live_tokenizer;
static peft_dataset *live_dataset;
static peft_trainer *live_trainer;
static peft_session *live_session;
static peft_pass *live_pass;
static peft_tensors *live_tensors, *live_state;
/* One freed handle of each kind. */
static void *freed_context, *freed_model, *freed_tokenizer, *freed_dataset, *freed_trainer, *freed_session, *freed_tensors, *freed_pass;
/* One row for a layer of 32 inputs and as many outputs. */
static float values[32];
static peft_array input = PEFT_ARRAY_INIT;
static int on_the_stack_of_the_host = 1;

static const char lines[] = "{\"text\": \"iron\"}\n{\"text\": \"fire\"}\n";
static const int64_t ids64[10] = {1, 7, 9, 11, 13, 1, 20, 22, 24, 26}, shape[2] = {2, 5};
static int32_t ids32[4] = {1, 30, 31, 32};
static const char *const names[1] = {"a"}, *const paths[1] = {"adapter"}; /* from the scratch folder, where it runs */
static char text[65536];
static size_t needed;
static int32_t id;
static double number;
static peft_step step = PEFT_STEP_INIT;
static peft_array array = PEFT_ARRAY_INIT;

/* Fresh handles of all kinds. */
static void open_all(void) {
  live_context = open_context(1);
  live_model = open_model(live_context);
  live_tensors = make_batch(live_context);
  OK(peft_model_tokenizer(&live_tokenizer, live_model, &error));
  OK(peft_dataset_open(&live_dataset, live_tokenizer, MODEL_FILE("conversations.jsonl"), "{\"max_length\": 48}", &error));
  OK(peft_adapter_add(live_model, "a", lora, NULL, &error));
  OK(peft_adapter_state(&live_state, live_model, "a", &error));
  OK(peft_trainer_create(&live_trainer, live_model, "{\"max_steps\": 3}", &error));
  OK(peft_session_create(&live_session, live_model, NULL, &error));
  OK(peft_session_append(live_session, ids32, 4, &error));
  input.type = PEFT_F32, input.rank = 2, input.shape[0] = 1, input.shape[1] = 32, input.data = values, input.size = sizeof values;
  OK(peft_layer_forward(NULL, 0, &live_pass, live_model, "model.layers.0.self_attn.q_proj", &input, NULL, &error));
}

static void free_all(void) {
  peft_context_free(live_context), peft_model_free(live_model), peft_tensors_free(live_tensors), peft_tensors_free(live_state), peft_tokenizer_free(live_tokenizer);
  peft_dataset_free(live_dataset), peft_trainer_free(live_trainer), peft_session_free(live_session), peft_pass_free(live_pass);
}

static int is_status(int32_t code) { return strcmp(peft_status_text(code), "unknown") != 0 && code != PEFT_ERROR_INTERNAL; }
"""


def argument(function, parameter):
    if (function.name, parameter.name) in ARGUMENTS:
        return ARGUMENTS[function.name, parameter.name]
    if parameter.is_handle_list:
        return f"({parameter.type})&live_{parameter.handle}"
    if parameter.handle:
        return f"live_{parameter.handle}"
    if parameter.out_handle:
        return "(void *)&out"
    if parameter.type == "peft_error *":
        return "&error"
    if parameter.name in ARGUMENTS:
        return ARGUMENTS[parameter.name]
    if parameter.type in EXTREMES:
        return "0"
    sys.exit(f"{function.name}: say in ARGUMENTS what '{parameter.type} {parameter.name}' may be")


def call(function, place, value):
    """The call with the argument at `place` replaced."""
    arguments = [argument(function, p) for p in function.parameters]
    arguments[place] = value
    return f"{function.name}({', '.join(arguments)})"


def wrong_handles(kind):
    other = HANDLES[(HANDLES.index(kind) + 1) % len(HANDLES)]
    return ["NULL", f"freed_{kind}", f"(void *)live_{other}", "(void *)&on_the_stack_of_the_host", "(void *)(uintptr_t)1", "(void *)UINTPTR_MAX",
            f"(void *)((uintptr_t)live_{kind} ^ ((uintptr_t)1 << 30))", f"(void *)((uintptr_t)live_{kind} ^ ((uintptr_t)1 << 46))",
            f"(void *)((uintptr_t)live_{kind} | ((uintptr_t)1 << 60))", f"(void *)((uintptr_t)live_{kind} - 1)"]


def handle_test(function, lines):
    out = next((p for p in function.parameters if p.out_handle), None)
    sizes = any(p.name == "needed" for p in function.parameters)
    for place, parameter in enumerate(function.parameters):
        if not parameter.handle:
            continue
        for value in wrong_handles(parameter.handle):
            if value == "NULL" and (function.name, parameter.name) in OPTIONAL:
                continue
            this = call(function, place, f"({parameter.type})(peft_{parameter.handle} *[]){{{value}}}" if parameter.is_handle_list else value)
            if not function.can_fail:
                # Frees ignore it; the others answer NULL or 0.
                lines.append(f"  {this};" if function.result == "void" else f"  CHECK({this} == 0);")
                continue
            if out:
                lines.append("  out = (void *)&on_the_stack_of_the_host;")
            if sizes:
                lines.append("  needed = 99;")
            lines.append(f"  FAILS(PEFT_ERROR_HANDLE, {this});")
            if out:
                lines.append("  CHECK(out == NULL);")
            if sizes:
                lines.append("  CHECK(needed == 0);")


def garbage_test(function, lines):
    for place, parameter in enumerate(function.parameters):
        if parameter.handle or not function.can_fail:
            continue
        values = ["NULL"] if parameter.type.endswith("*") else [] if parameter.name in PROMISES else EXTREMES.get(parameter.type, [])
        if parameter.type == "const char *" and parameter.name not in ("data", "text"):
            values = values + ['""', r'"\xff\xfe"', '"{"', '"[[[[{}]]]]"', 'long_text']
        for value in values:
            this = call(function, place, value)
            if parameter.out_handle and value == "NULL" and (function.name, parameter.name) not in OPTIONAL:
                lines.append(f"  FAILS(PEFT_ERROR_ARGUMENT, {this});")
                continue
            lines.append(f"  if (!CHECK(is_status({this}))) return;")
            out = next((p for p in function.parameters if p.out_handle), None)
            if out:
                lines.append(f"  peft_{out.out_handle}_free(out), out = NULL;")


def main():
    all_functions = functions(sys.argv[1])
    takes_handles = [f for f in all_functions if any(p.handle for p in f.parameters)]
    print(PRELUDE)
    names = []
    for function in takes_handles:
        lines = []
        handle_test(function, lines)
        unused = "" if any(p.out_handle for p in function.parameters) else "\n  (void)out;"
        print(f"TEST({function.name}_wants_its_handles) {{\n  void *out = NULL;{unused}\n" + "\n".join(lines) + "\n}\n")
        names.append(f"{function.name}_wants_its_handles")
    print("static char long_text[100001];\n")
    for function in all_functions:
        lines = []
        garbage_test(function, lines)
        if not lines:
            continue
        print(f"TEST({function.name}_survives_garbage) {{\n  void *out = NULL;\n  (void)out;\n  open_all();\n" + "\n".join(lines) + "\n  free_all();\n}\n")
        names.append(f"{function.name}_survives_garbage")
    print("int main(int argc, char **argv) {\n  start(argc, argv);\n  memset(long_text, 'x', sizeof long_text - 1);\n  open_all();")
    print('  OK(peft_tensors_save(live_tensors, SCRATCH("arrays.safetensors"), &error));\n  OK(peft_adapter_save(live_model, "a", SCRATCH("adapter"), &error));')
    print('  OK(peft_trainer_save(live_trainer, NULL, SCRATCH("checkpoint.h5"), &error));')
    for kind in HANDLES:
        print(f"  freed_{kind} = live_{kind};")
    print("  free_all();\n  open_all();")
    split = len(takes_handles)
    for name in names[:split]:
        print(f"  RUN({name});")
    print("  free_all();")
    for name in names[split:]:
        print(f"  RUN({name});")
    print("  return finish();\n}")


main()
