/* Writing HDF5 files with the HDF5 C library, which is loaded when the first file is written.
 *
 * Not linked: the library brings 35 others with it (curl, Kerberos, LDAP, TLS…) and 5 ms at every start of a host that
 * never writes a checkpoint. Only writing uses it; files are read by our own reader, because they may come from
 * strangers (Checkpoints/HDF5Reader.swift).
 *
 * A file is made in memory of the caller (the "core" driver): the library never touches the file system.
 * The library is not thread-safe and its error and plug-in settings are global: the caller holds one lock from create to
 * close, and what create changed, close restores. Nothing is printed. */
#ifndef CHDF5_H
#define CHDF5_H

#include <stddef.h>
#include <stdint.h>

/* Element types. */
enum { HDF5W_F32, HDF5W_F64, HDF5W_F16, HDF5W_BF16, HDF5W_I8, HDF5W_I16, HDF5W_I32, HDF5W_I64, HDF5W_U8, HDF5W_TYPES };

/* The file grows in steps of so many bytes. */
enum { HDF5W_INCREMENT = 1 << 16 };

typedef struct hdf5w_library hdf5w_library;
typedef struct hdf5w_writer hdf5w_writer;

/* Loads the library; NULL with a reason when it is not installed or too old. Stays loaded. */
hdf5w_library *hdf5w_load(char *reason, size_t capacity);

/* Starts a file in `memory`, which must stay until close; NULL on failure. A file that outgrows `capacity` is a failure. */
hdf5w_writer *hdf5w_create(const hdf5w_library *library, void *memory, size_t capacity);
/* All return 0, or -1 with hdf5w_message. Paths are "group/name"; groups are made before what lies in them. */
int hdf5w_root_attribute(hdf5w_writer *writer, const char *name, int64_t value);
int hdf5w_group(hdf5w_writer *writer, const char *path);
int hdf5w_string(hdf5w_writer *writer, const char *path, const char *text, size_t size);
int hdf5w_dataset(hdf5w_writer *writer, const char *path, int type, int rank, const uint64_t *sizes, const void *data);
/* Completes the file: its size in `memory`, or -1. */
int64_t hdf5w_finish(hdf5w_writer *writer);
/* What the library said about the last failure. */
const char *hdf5w_message(const hdf5w_writer *writer);
void hdf5w_close(hdf5w_writer *writer);

#endif
