/* What learned distances (T5's relative positions) get of attention's gradient. With P and δ as in attention_backward.c,
 *   dbias[h, t + q_offset − s] = Σ P[t, s] · (dO[t]·V[s] − δ[t])
 * Such tables are few numbers and seldom trained: one plain loop for all processors, each head's sums in a fixed order. */
#include <math.h>
#include "half.h"
#include "kernels.h"
#include "share.h"

static float dot(const pk_attention *op, const void *a, int64_t i, const void *b, int64_t j) {
  float sum = 0;
  for (int64_t d = 0; d < op->head_dim; d++) {
    sum += op->act == PK_F32 ? ((const float *)a)[i + d] * ((const float *)b)[j + d]
                             : pk_bf16_to_f32(((const uint16_t *)a)[i + d]) * pk_bf16_to_f32(((const uint16_t *)b)[j + d]);
  }
  return sum;
}

void pk_attention_bias_gradient(const pk_attention *op, float *gradient, int32_t part, int32_t parts) {
  const pk_range share = pk_share(op->heads, 1, part, parts);
  for (int64_t h = share.begin; h < share.end; h++) {
    const int64_t kv = h / (op->heads / op->kv_heads) * op->head_dim, own = h * op->head_dim;
    const float *bias = op->distance_bias + h * op->bias_head;
    float *sums = gradient + h * op->bias_head;
    for (int64_t row = 0; row < op->batch * op->q_len; row++) {
      const int64_t b = row / op->q_len, t = row % op->q_len, place = t + op->q_offset;
      const int64_t q = b * op->q_batch + t * op->q_token + own, o = b * op->o_batch + t * op->o_token + own;
      const float lse = op->lse[(b * op->heads + h) * op->q_len + t], delta = dot(op, op->d_out, o, op->out, o);
      int64_t first = op->first_key ? op->first_key[row] : 0;
      if (op->window > 0) first = pk_max(first, place - op->window + 1);
      const int64_t end = op->causal ? pk_min(op->k_len, place + 1) : op->k_len;
      for (int64_t s = pk_max(first, 0); s < end; s++) {
        if (op->key_mask && !op->key_mask[b * op->k_len + s]) continue;
        const float score = op->scale * dot(op, op->q, q, op->k, b * op->k_batch + s * op->k_token + kv) + bias[place - s];
        sums[place - s] += expf(score - lse) * (dot(op, op->d_out, o, op->v, b * op->v_batch + s * op->v_token + kv) - delta);
      }
    }
  }
}
