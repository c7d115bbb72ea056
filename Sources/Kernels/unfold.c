/* Convolutions as products: the patches that a kernel sees, as rows of a matrix, and back. One body for 1, 2 and 3
 * dimensions (unused ones have size 1). Memory movement only, so there is one version for all processors; the products
 * around it are where the time goes. */
#include <string.h>
#include "half.h"
#include "kernels.h"
#include "share.h"

static int64_t volume(const int64_t size[3]) { return size[0] * size[1] * size[2]; }

/* Element (b, c, z, y, x) of the picture. */
static int64_t place(const pk_patches *g, int64_t b, int64_t c, int64_t z, int64_t y, int64_t x) {
  return b * g->batch_stride + c * g->channel_stride + ((z * g->in[1] + y) * g->in[2] + x) * g->position_stride;
}

void pk_unfold(const pk_patches *g, const void *picture, void *rows, int32_t part, int32_t parts) {
  const size_t bytes = g->act == PK_F32 ? 4 : 2;
  const int64_t positions = volume(g->out), taps = volume(g->kernel);
  const pk_range share = pk_share(g->batch * positions, 1, part, parts);
  for (int64_t row = share.begin; row < share.end; row++) {
    const int64_t b = row / positions, o = row % positions;
    const int64_t oz = o / (g->out[1] * g->out[2]), oy = o / g->out[2] % g->out[1], ox = o % g->out[2];
    char *to = (char *)rows + row * g->channels * taps * bytes;
    for (int64_t c = 0; c < g->channels; c++) {
      for (int64_t kz = 0; kz < g->kernel[0]; kz++) {
        const int64_t z = oz * g->stride[0] - g->padding[0] + kz * g->dilation[0];
        for (int64_t ky = 0; ky < g->kernel[1]; ky++) {
          const int64_t y = oy * g->stride[1] - g->padding[1] + ky * g->dilation[1];
          for (int64_t kx = 0; kx < g->kernel[2]; kx++, to += bytes) {
            const int64_t x = ox * g->stride[2] - g->padding[2] + kx * g->dilation[2];
            if (z >= 0 && z < g->in[0] && y >= 0 && y < g->in[1] && x >= 0 && x < g->in[2]) {
              memcpy(to, (const char *)picture + place(g, b, c, z, y, x) * bytes, bytes);
            } else {
              memset(to, 0, bytes);
            }
          }
        }
      }
    }
  }
}

/* The output position that sees input position `i` with tap `k`, −1 if none does. */
static int64_t seen_by(int64_t i, int64_t k, int64_t stride, int64_t padding, int64_t dilation, int64_t out) {
  const int64_t o = i + padding - k * dilation;
  return o >= 0 && o % stride == 0 && o / stride < out ? o / stride : -1;
}

void pk_fold(const pk_patches *g, const void *rows, void *picture, int32_t accumulate, int32_t part, int32_t parts) {
  const int64_t positions = volume(g->out), taps = volume(g->kernel), width = g->channels * taps;
  const pk_range share = pk_share(g->batch * g->channels, 1, part, parts);
  for (int64_t plane = share.begin; plane < share.end; plane++) {
    const int64_t b = plane / g->channels, c = plane % g->channels;
    for (int64_t z = 0; z < g->in[0]; z++) {
      for (int64_t y = 0; y < g->in[1]; y++) {
        for (int64_t x = 0; x < g->in[2]; x++) {
          /* Gathered, not scattered: one sum for each input element, rounded once, in a fixed order. */
          float sum = 0;
          for (int64_t kz = 0; kz < g->kernel[0]; kz++) {
            const int64_t oz = seen_by(z, kz, g->stride[0], g->padding[0], g->dilation[0], g->out[0]);
            for (int64_t ky = 0; ky < g->kernel[1] && oz >= 0; ky++) {
              const int64_t oy = seen_by(y, ky, g->stride[1], g->padding[1], g->dilation[1], g->out[1]);
              for (int64_t kx = 0; kx < g->kernel[2] && oy >= 0; kx++) {
                const int64_t ox = seen_by(x, kx, g->stride[2], g->padding[2], g->dilation[2], g->out[2]);
                if (ox < 0) continue;
                const int64_t row = b * positions + (oz * g->out[1] + oy) * g->out[2] + ox;
                const int64_t from = row * width + c * taps + (kz * g->kernel[1] + ky) * g->kernel[2] + kx;
                sum += g->act == PK_F32 ? ((const float *)rows)[from] : pk_bf16_to_f32(((const uint16_t *)rows)[from]);
              }
            }
          }
          const int64_t to = place(g, b, c, z, y, x);
          if (g->act == PK_F32) {
            float *value = (float *)picture + to;
            *value = sum + (accumulate ? *value : 0);
          } else {
            uint16_t *value = (uint16_t *)picture + to;
            *value = pk_f32_to_bf16(sum + (accumulate ? pk_bf16_to_f32(*value) : 0));
          }
        }
      }
    }
  }
}
