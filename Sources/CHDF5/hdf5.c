#include "CHDF5.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Debian keeps the serial HDF5 headers in a folder of their own. Only types are used: nothing is linked. */
#if __has_include(<hdf5/serial/hdf5.h>)
#include <hdf5/serial/hdf5.h>
#else
#include <hdf5.h>
#endif

/* Functions whose binary interface is the same in all versions since 1.10. */
#define FUNCTIONS(X)                                                                                                              \
  X(H5open) X(H5get_libversion) X(H5Eget_auto2) X(H5Eset_auto2) X(H5Ewalk2) X(H5PLget_loading_state) X(H5PLset_loading_state)     \
  X(H5Pcreate) X(H5Pclose) X(H5Pset_fapl_core) X(H5Pset_file_image_callbacks) X(H5Pset_libver_bounds) X(H5Pset_alignment)         \
  X(H5Pset_obj_track_times)                                                                                                       \
  X(H5Pset_fclose_degree) X(H5Fcreate) X(H5Fflush) X(H5Fclose) X(H5Fget_file_image) X(H5Gcreate2) X(H5Gclose) X(H5Screate)        \
  X(H5Screate_simple) X(H5Sclose) X(H5Tcopy) X(H5Tset_size) X(H5Tset_cset) X(H5Tset_fields) X(H5Tset_ebias) X(H5Tclose)           \
  X(H5Dcreate2) X(H5Dwrite) X(H5Dclose) X(H5Acreate2) X(H5Awrite) X(H5Aclose)

struct hdf5w_library {
#define FIELD(f) __typeof__(f) *f;
  FUNCTIONS(FIELD)
  hid_t types[HDF5W_TYPES], c_string;
  hid_t file_access, file_create, group_create, dataset_create; /* property list classes */
};

struct hdf5w_writer {
  const hdf5w_library *lib;
  hid_t file, group_properties, dataset_properties;
  H5E_auto2_t error_function;
  void *error_data;
  unsigned plugins;
  void *memory;
  size_t capacity;
  char message[256];
};

/* Predefined ids are variables of the library, set by H5open. */
static int read_id(void *handle, const char *name, hid_t *id) {
  const hid_t *variable = dlsym(handle, name);
  if (!variable) return -1;
  *id = *variable;
  return 0;
}

/* A 2-byte float as HDF5 describes it: sign at bit 15, exponent above the mantissa. */
static hid_t small_float(const hdf5w_library *lib, size_t exponent_bits, size_t mantissa_bits, size_t bias) {
  hid_t type = lib->H5Tcopy(lib->types[HDF5W_F32]);
  if (type < 0) return -1;
  /* Fields first: they must lie inside the new size. */
  if (lib->H5Tset_fields(type, 15, mantissa_bits, exponent_bits, 0, mantissa_bits) < 0 || lib->H5Tset_size(type, 2) < 0 ||
      lib->H5Tset_ebias(type, bias) < 0)
    return -1;
  return type;
}

static int load_ids(hdf5w_library *lib, void *handle) {
  static const struct { int type; const char *name; } types[] = {
      {HDF5W_F32, "H5T_IEEE_F32LE_g"}, {HDF5W_F64, "H5T_IEEE_F64LE_g"}, {HDF5W_I8, "H5T_STD_I8LE_g"},   {HDF5W_I16, "H5T_STD_I16LE_g"},
      {HDF5W_I32, "H5T_STD_I32LE_g"},  {HDF5W_I64, "H5T_STD_I64LE_g"},  {HDF5W_U8, "H5T_STD_U8LE_g"},
  };
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (read_id(handle, types[i].name, &lib->types[types[i].type])) return -1;
  lib->types[HDF5W_F16] = small_float(lib, 5, 10, 15);
  lib->types[HDF5W_BF16] = small_float(lib, 8, 7, 127);
  return lib->types[HDF5W_F16] < 0 || lib->types[HDF5W_BF16] < 0 || read_id(handle, "H5T_C_S1_g", &lib->c_string) ||
                 read_id(handle, "H5P_CLS_FILE_ACCESS_ID_g", &lib->file_access) || read_id(handle, "H5P_CLS_FILE_CREATE_ID_g", &lib->file_create) ||
                 read_id(handle, "H5P_CLS_GROUP_CREATE_ID_g", &lib->group_create) ||
                 read_id(handle, "H5P_CLS_DATASET_CREATE_ID_g", &lib->dataset_create)
             ? -1
             : 0;
}

hdf5w_library *hdf5w_load(char *reason, size_t capacity) {
  /* Debian 12 / Ubuntu, Debian 13, then the names of other systems. */
  static const char *const names[] = {"libhdf5_serial.so.103", "libhdf5_serial.so.310", "libhdf5_serial.so", "libhdf5.so.103",
                                      "libhdf5.so.200",        "libhdf5.so.310",        "libhdf5.so"};
  void *handle = NULL;
  int is_ours = 0;
  for (size_t i = 0; i < sizeof names / sizeof *names && !handle; i++) {
    handle = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD); /* the host's own, if it has one */
    if (!handle && (handle = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL))) is_ours = 1;
  }
  if (!handle) {
    snprintf(reason, capacity, "the HDF5 library is not installed (Debian: libhdf5-103, others: libhdf5)");
    return NULL;
  }
  hdf5w_library *lib = calloc(1, sizeof *lib);
  if (!lib) {
    snprintf(reason, capacity, "no memory");
    dlclose(handle);
    return NULL;
  }
  const char *missing = NULL;
#define LOAD(f)                              \
  lib->f = (__typeof__(f) *)dlsym(handle, #f); \
  if (!lib->f) missing = #f;
  FUNCTIONS(LOAD)
  if (missing) {
    snprintf(reason, capacity, "the installed HDF5 library has no function %s; 1.10 or newer is needed", missing);
  } else {
    /* The library's clean-up at exit would run after the host's; with all files closed there is nothing to clean. A host
     * that brought the library itself keeps its own arrangement. */
    herr_t (*dont_atexit)(void) = (herr_t(*)(void))dlsym(handle, "H5dont_atexit");
    if (is_ours && dont_atexit) dont_atexit();
    unsigned major = 0, minor = 0, release = 0;
    if (lib->H5open() < 0 || lib->H5get_libversion(&major, &minor, &release) < 0 || load_ids(lib, handle))
      snprintf(reason, capacity, "the installed HDF5 library does not start");
    else if (major * 1000 + minor < 1010)
      snprintf(reason, capacity, "HDF5 %u.%u.%u is installed; 1.10 or newer is needed", major, minor, release);
    else
      return lib;
  }
  free(lib); /* the handle stays: unloading a library that has started is not safe */
  return NULL;
}

static herr_t innermost(unsigned n, const H5E_error2_t *error, void *data) {
  char *message = data;
  if (n == 0 && error->desc) snprintf(message, sizeof((hdf5w_writer *)0)->message, "%s", error->desc);
  return 0;
}

/* Notes why the last call failed. */
static int failed(hdf5w_writer *w) {
  snprintf(w->message, sizeof w->message, "unknown reason");
  w->lib->H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, w->message);
  return -1;
}

/* The allocation functions of the core driver: one block, the caller's, as long as the file fits. */
static void *image_malloc(size_t size, H5FD_file_image_op_t operation, void *data) {
  (void)operation;
  hdf5w_writer *w = data;
  return size <= w->capacity ? w->memory : NULL;
}
static void *image_realloc(void *block, size_t size, H5FD_file_image_op_t operation, void *data) {
  (void)block;
  return image_malloc(size, operation, data);
}
static void *image_memcpy(void *to, const void *from, size_t size, H5FD_file_image_op_t operation, void *data) {
  (void)operation, (void)data;
  return memmove(to, from, size);
}
static herr_t image_free(void *block, H5FD_file_image_op_t operation, void *data) {
  (void)block, (void)operation, (void)data;
  return 0;
}
static void *same_data(void *data) { return data; }
static herr_t keep_data(void *data) {
  (void)data;
  return 0;
}

hdf5w_writer *hdf5w_create(const hdf5w_library *lib, void *memory, size_t capacity) {
  hdf5w_writer *w = calloc(1, sizeof *w);
  if (!w) return NULL;
  w->lib = lib;
  w->memory = memory;
  w->capacity = capacity;
  w->file = w->group_properties = w->dataset_properties = -1;
  lib->H5Eget_auto2(H5E_DEFAULT, &w->error_function, &w->error_data);
  lib->H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
  lib->H5PLget_loading_state(&w->plugins);
  lib->H5PLset_loading_state(0);

  hid_t access = lib->H5Pcreate(lib->file_access), create = lib->H5Pcreate(lib->file_create);
  w->group_properties = lib->H5Pcreate(lib->group_create);
  w->dataset_properties = lib->H5Pcreate(lib->dataset_create);
  /* The oldest format version, the only one our reader takes and every other reader knows. Everything 8-aligned, so that
   * a mapped file's tensors can be used where they lie. No time stamps: equal contents make equal files. */
  H5FD_file_image_callbacks_t callbacks = {image_malloc, image_memcpy, image_realloc, image_free, same_data, keep_data, w};
  if (lib->H5Pset_fapl_core(access, HDF5W_INCREMENT, 0) >= 0 && lib->H5Pset_file_image_callbacks(access, &callbacks) >= 0 &&
      lib->H5Pset_libver_bounds(access, H5F_LIBVER_EARLIEST, H5F_LIBVER_V18) >= 0 &&
      lib->H5Pset_alignment(access, 1, 8) >= 0 && lib->H5Pset_fclose_degree(access, H5F_CLOSE_STRONG) >= 0 &&
      lib->H5Pset_obj_track_times(create, 0) >= 0 && lib->H5Pset_obj_track_times(w->group_properties, 0) >= 0 &&
      lib->H5Pset_obj_track_times(w->dataset_properties, 0) >= 0)
    w->file = lib->H5Fcreate("memory", 0x0002u /* H5F_ACC_TRUNC */, create, access);
  if (w->file < 0) failed(w);
  lib->H5Pclose(access);
  lib->H5Pclose(create);
  if (w->file < 0) {
    hdf5w_close(w);
    return NULL;
  }
  return w;
}

int hdf5w_root_attribute(hdf5w_writer *w, const char *name, int64_t value) {
  const hdf5w_library *lib = w->lib;
  hid_t space = lib->H5Screate(H5S_SCALAR);
  hid_t attribute = lib->H5Acreate2(w->file, name, lib->types[HDF5W_I64], space, H5P_DEFAULT, H5P_DEFAULT);
  int result = attribute < 0 || lib->H5Awrite(attribute, lib->types[HDF5W_I64], &value) < 0 ? failed(w) : 0;
  if (attribute >= 0) lib->H5Aclose(attribute);
  if (space >= 0) lib->H5Sclose(space);
  return result;
}

int hdf5w_group(hdf5w_writer *w, const char *path) {
  hid_t group = w->lib->H5Gcreate2(w->file, path, H5P_DEFAULT, w->group_properties, H5P_DEFAULT);
  if (group < 0) return failed(w);
  return w->lib->H5Gclose(group) < 0 ? failed(w) : 0;
}

static int write_dataset(hdf5w_writer *w, const char *path, hid_t type, hid_t space, const void *data) {
  const hdf5w_library *lib = w->lib;
  hid_t dataset = lib->H5Dcreate2(w->file, path, type, space, H5P_DEFAULT, w->dataset_properties, H5P_DEFAULT);
  int result = dataset < 0 || (data && lib->H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0) ? failed(w) : 0;
  if (dataset >= 0 && lib->H5Dclose(dataset) < 0 && result == 0) result = failed(w);
  return result;
}

int hdf5w_string(hdf5w_writer *w, const char *path, const char *text, size_t size) {
  const hdf5w_library *lib = w->lib;
  hid_t type = lib->H5Tcopy(lib->c_string), space = lib->H5Screate(H5S_SCALAR);
  int result = lib->H5Tset_size(type, size) < 0 || lib->H5Tset_cset(type, H5T_CSET_UTF8) < 0 ? failed(w) : write_dataset(w, path, type, space, text);
  if (type >= 0) lib->H5Tclose(type);
  if (space >= 0) lib->H5Sclose(space);
  return result;
}

int hdf5w_dataset(hdf5w_writer *w, const char *path, int type, int rank, const uint64_t *sizes, const void *data) {
  const hdf5w_library *lib = w->lib;
  hsize_t dimensions[H5S_MAX_RANK];
  if (type < 0 || type >= HDF5W_TYPES || rank < 0 || rank > H5S_MAX_RANK) return snprintf(w->message, sizeof w->message, "type or rank out of range"), -1;
  for (int i = 0; i < rank; i++) dimensions[i] = sizes[i];
  hid_t space = rank == 0 ? lib->H5Screate(H5S_SCALAR) : lib->H5Screate_simple(rank, dimensions, NULL);
  if (space < 0) return failed(w);
  int result = write_dataset(w, path, lib->types[type], space, data);
  lib->H5Sclose(space);
  return result;
}

int64_t hdf5w_finish(hdf5w_writer *w) {
  if (w->lib->H5Fflush(w->file, H5F_SCOPE_GLOBAL) < 0) return failed(w);
  ssize_t size = w->lib->H5Fget_file_image(w->file, NULL, 0);
  return size < 0 || (size_t)size > w->capacity ? failed(w) : (int64_t)size;
}

const char *hdf5w_message(const hdf5w_writer *w) { return w->message; }

void hdf5w_close(hdf5w_writer *w) {
  const hdf5w_library *lib = w->lib;
  if (w->file >= 0) lib->H5Fclose(w->file);
  if (w->group_properties >= 0) lib->H5Pclose(w->group_properties);
  if (w->dataset_properties >= 0) lib->H5Pclose(w->dataset_properties);
  lib->H5PLset_loading_state(w->plugins);
  lib->H5Eset_auto2(H5E_DEFAULT, w->error_function, w->error_data);
  free(w);
}
