/* Decoders of the portable level. */
#include "formats.h"
#include "half.h"

#define DECODER(name) pk_decode_##name
#define LINKAGE
#include "formats_decode.h"
