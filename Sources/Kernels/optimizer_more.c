/* Steps of Lion, Adafactor, and Adam with a state of eight bits. Plain C: adapters are small. */
#include "coded.h"

#include <math.h>

/* w = w(1 − lr·decay) − lr·sign(β₁m + (1−β₁)g),  m = β₂m + (1−β₂)g      (Chen et al., arXiv:2302.06675) */
void pk_lion(float *w, const float *g, float *m, size_t count, float grad_scale, float lr, float beta1, float beta2, float weight_decay, int32_t part, int32_t parts) {
  const pk_range share = pk_share((int64_t)count, PK_GRAIN, part, parts);
  const float keep = (float)(1 - (double)lr * weight_decay);
  for (int64_t i = share.begin; i < share.end; i++) {
    const float gradient = g[i] * grad_scale, direction = beta1 * m[i] + (1 - beta1) * gradient;
    m[i] = beta2 * m[i] + (1 - beta2) * gradient;
    w[i] = keep * w[i] - (direction > 0 ? lr : direction < 0 ? -lr : 0);
  }
}

static double mean(const float *x, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += x[i];
  return sum / (double)count;
}

/* Matrices [count, rows, columns]; `row` [count, rows] and `column` [count, columns] are means of g² + ε over the other axis,
 * whose product stands for g² (Shazeer and Stern, arXiv:1804.04235). Without them (column NULL) `row` is of every value.
 * The update's root mean square, over all of it, is at most `threshold`. Two sweeps: the first to know it. */
void pk_adafactor(float *w, const float *g, float *row, float *column, int64_t count, int64_t rows, int64_t columns, float grad_scale, float lr,
                  float beta2, float eps, float threshold, float weight_decay) {
  const int64_t size = rows * columns;
  double squares = 0, clip = 1;
  for (int sweep = 0; sweep < 2; sweep++) {
    for (int64_t n = 0; n < count; n++) {
      const float *gradient = g + n * size;
      float *weight = w + n * size, *r = row + n * (column ? rows : size), *c = column ? column + n * columns : NULL;
      if (sweep == 0 && !c) {
        for (int64_t i = 0; i < size; i++) {
          const float x = gradient[i] * grad_scale;
          r[i] = beta2 * r[i] + (1 - beta2) * (x * x + eps);
        }
      }
      if (sweep == 0 && c) {
        for (int64_t j = 0; j < columns; j++) c[j] *= beta2;
        for (int64_t i = 0; i < rows; i++) {
          double sum = 0;
          for (int64_t j = 0; j < columns; j++) {
            const float x = gradient[i * columns + j] * grad_scale, square = x * x + eps;
            sum += square;
            c[j] += (1 - beta2) * square / (float)rows;
          }
          r[i] = beta2 * r[i] + (1 - beta2) * (float)(sum / (double)columns);
        }
      }
      const double all = c ? mean(r, rows) : 1;
      for (int64_t i = 0; i < size; i++) {
        const double root = c ? sqrt((double)r[i / columns] / all * (double)c[i % columns]) : sqrt((double)r[i]);
        const double update = root > 0 ? (double)gradient[i] * grad_scale / root : 0;
        if (sweep == 0) {
          squares += update * update;
        } else {
          weight[i] = (float)((double)weight[i] * (1 - (double)weight_decay * lr) - (double)lr * update / clip);
        }
      }
    }
    const double root_mean_square = sqrt(squares / (double)(count * size > 0 ? count * size : 1));
    clip = root_mean_square > threshold ? root_mean_square / threshold : 1;
  }
}

enum { state_block = 256 };

/* The nearest of 256 ascending values. */
static uint8_t nearest_code(const float *values, float x) {
  int low = 0, high = 255;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (x > (values[middle] + values[middle + 1]) / 2) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return (uint8_t)low;
}

/* AdamW whose m and v are codes of the dynamic types, with a scale for 256 (Dettmers et al., arXiv:2110.02861). As in bitsandbytes the
 * update sees the moments before they are rounded, and a rounded m keeps its sign. */
void pk_adamw8(float *w, const float *g, uint8_t *m, uint8_t *v, float *m_scales, float *v_scales, size_t count, float grad_scale, float lr, float beta1,
               float beta2, float eps, float weight_decay, int64_t step, int32_t part, int32_t parts) {
  const double correction1 = 1 - pow((double)beta1, (double)step), correction2 = sqrt(1 - pow((double)beta2, (double)step));
  const float rate = (float)(lr * correction2 / correction1), floor = (float)(correction2 * eps), keep = (float)(1 - (double)lr * weight_decay);
  const pk_range share = pk_share((int64_t)count, state_block, part, parts);
  for (int64_t start = share.begin; start < share.end; start += state_block) {
    const int64_t block = start / state_block, size = pk_min(state_block, share.end - start);
    float first[state_block], second[state_block], most_first = 0, most_second = 0;
    for (int64_t i = 0; i < size; i++) {
      const float gradient = g[start + i] * grad_scale;
      first[i] = beta1 * pk_dynamic_values[m[start + i]] * m_scales[block] + (1 - beta1) * gradient;
      second[i] = beta2 * pk_dynamic_unsigned_values[v[start + i]] * v_scales[block] + (1 - beta2) * gradient * gradient;
      most_first = fmaxf(most_first, fabsf(first[i]));
      most_second = fmaxf(most_second, second[i]);
      w[start + i] = keep * w[start + i] - rate * (first[i] / (sqrtf(second[i]) + floor));
    }
    m_scales[block] = most_first, v_scales[block] = most_second;
    for (int64_t i = 0; i < size; i++) {
      int code = most_first > 0 ? nearest_code(pk_dynamic_values, first[i] / most_first) : 127;
      if (signbit(pk_dynamic_values[code]) != signbit(first[i])) code += first[i] > 0 ? 1 : -1;
      m[start + i] = (uint8_t)code;
      v[start + i] = most_second > 0 ? nearest_code(pk_dynamic_unsigned_values, second[i] / most_second) : 0;
    }
  }
}
