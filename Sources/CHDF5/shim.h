/* Debian keeps the serial HDF5 headers in a folder of their own. */
#include <hdf5/serial/hdf5.h>
