/* Exact attention, plain loops. */
#include <math.h>
#include <string.h>
#include "kernels.h"
#include "share.h"

static float get(int32_t act, const void *p, int64_t i) {
  if (act == PK_F32) return ((const float *)p)[i];
  const uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static void put(int32_t act, void *p, int64_t i, float v) {
  if (act == PK_F32) {
    ((float *)p)[i] = v;
    return;
  }
  uint32_t u;
  memcpy(&u, &v, 4);
  ((uint16_t *)p)[i] = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float dot(int32_t act, const void *x, int64_t i, const void *y, int64_t j, int64_t n) {
  float sum = 0;
  for (int64_t d = 0; d < n; d++) sum += get(act, x, i + d) * get(act, y, j + d);
  return sum;
}

static int visible(const pk_attention *op, int64_t b, int64_t t, int64_t k) {
  if (op->causal && k > t + op->q_offset) return 0;
  if (op->window > 0 && k <= t + op->q_offset - op->window) return 0;
  if (op->first_key && k < op->first_key[b * op->q_len + t]) return 0;
  return !op->key_mask || op->key_mask[b * op->k_len + k];
}

static float score(const pk_attention *op, int64_t b, int64_t h, int64_t t, int64_t k) {
  const int64_t kv = h / (op->heads / op->kv_heads);
  const float s = op->scale * dot(op->act, op->q, b * op->q_batch + t * op->q_token + h * op->head_dim, op->k,
                                  b * op->k_batch + k * op->k_token + kv * op->head_dim, op->head_dim);
  return op->softcap > 0 ? op->softcap * tanhf(s / op->softcap) : s;
}

void pk_attention_scratch(const pk_attention *op, int32_t backward, size_t *each, size_t *shared) {
  const size_t kv = (size_t)(op->batch * op->k_len * op->kv_heads * op->head_dim);
  *each = (size_t)(op->k_len + op->head_dim) * sizeof(float);
  *shared = backward ? 2 * kv * sizeof(float) : 0;
}

void pk_attention_forward(const pk_attention *op, int32_t part, int32_t parts, void *each) {
  float *p = each, *o = p + op->k_len;
  const pk_range share = pk_share(op->batch * op->heads * op->q_len, 1, part, parts);
  for (int64_t i = share.begin; i < share.end; i++) {
    const int64_t t = i % op->q_len, h = i / op->q_len % op->heads, b = i / op->q_len / op->heads;
    const int64_t kv = h / (op->heads / op->kv_heads);
    float top = -INFINITY, sum = 0;
    for (int64_t k = 0; k < op->k_len; k++) {
      p[k] = visible(op, b, t, k) ? score(op, b, h, t, k) : -INFINITY;
      top = fmaxf(top, p[k]);
    }
    memset(o, 0, (size_t)op->head_dim * sizeof(float));
    for (int64_t k = 0; k < op->k_len; k++) {
      if (p[k] == -INFINITY) continue;
      const float e = expf(p[k] - top);
      sum += e;
      for (int64_t d = 0; d < op->head_dim; d++) {
        o[d] += e * get(op->act, op->v, b * op->v_batch + k * op->v_token + kv * op->head_dim + d);
      }
    }
    for (int64_t d = 0; d < op->head_dim; d++) {
      put(op->act, op->out, b * op->o_batch + t * op->o_token + h * op->head_dim + d, sum > 0 ? o[d] / sum : 0);
    }
    if (op->lse) op->lse[i] = sum > 0 ? top + logf(sum) : -INFINITY;
  }
}

void pk_attention_backward(const pk_attention *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  const int64_t group = op->heads / op->kv_heads, n = op->head_dim;
  if (phase == 1) return;
  const pk_range share = pk_share(op->batch * op->kv_heads, 1, part, parts);
  for (int64_t i = share.begin; i < share.end; i++) {
    const int64_t b = i / op->kv_heads, kv = i % op->kv_heads;
    float *dk = (float *)shared + 2 * i * op->k_len * n, *dv = dk + op->k_len * n, *dq = (float *)each + op->k_len;
    memset(dk, 0, (size_t)(2 * op->k_len * n) * sizeof(float));
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
      for (int64_t t = 0; t < op->q_len; t++) {
        const int64_t q = b * op->q_batch + t * op->q_token + h * n, o = b * op->o_batch + t * op->o_token + h * n;
        const float delta = dot(op->act, op->out, o, op->d_out, o, n), lse = op->lse[(b * op->heads + h) * op->q_len + t];
        memset(dq, 0, (size_t)n * sizeof(float));
        for (int64_t k = 0; k < op->k_len; k++) {
          if (!visible(op, b, t, k)) continue;
          const int64_t kk = b * op->k_batch + k * op->k_token + kv * n, vv = b * op->v_batch + k * op->v_token + kv * n;
          const float s = score(op, b, h, t, k), p = expf(s - lse);
          float ds = p * (dot(op->act, op->d_out, o, op->v, vv, n) - delta) * op->scale;
          if (op->softcap > 0) ds *= 1 - (s / op->softcap) * (s / op->softcap);
          for (int64_t d = 0; d < n; d++) {
            dv[k * n + d] += p * get(op->act, op->d_out, o + d);
            dk[k * n + d] += ds * get(op->act, op->q, q + d);
            dq[d] += ds * get(op->act, op->k, kk + d);
          }
        }
        for (int64_t d = 0; d < n; d++) put(op->act, op->d_q, q + d, dq[d]);
      }
    }
    for (int64_t k = 0; k < op->k_len; k++) {
      for (int64_t d = 0; d < n; d++) {
        put(op->act, op->d_k, b * op->k_batch + k * op->k_token + kv * n + d, dk[k * n + d]);
        put(op->act, op->d_v, b * op->v_batch + k * op->v_token + kv * n + d, dv[k * n + d]);
      }
    }
  }
}
