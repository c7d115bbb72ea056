/* How loud a recording is at each pitch and time: Whisper's log-mel spectrogram. Frames are short and mostly few, so the transform
 * is the sum itself, in double: of the window's two halves, which mirror each other, cosines see the sum and sines the difference. */
#include <math.h>
#include "kernels.h"
#include "share.h"

/* The sample at place i; the recording ends in silence, and is mirrored at both ends of its whole length. */
static double sample(const pk_log_mel *m, int64_t i) {
  if (i < 0) i = -i;
  if (i >= m->length) i = 2 * (m->length - 1) - i;
  return i >= 0 && i < m->count ? m->samples[i] : 0;
}

void pk_log_mel_frames(const pk_log_mel *m, float *out, int32_t part, int32_t parts) {
  const int64_t half = m->size / 2, waves = half + 1, frames = m->length / m->hop;
  const pk_range share = pk_share(frames, 1, part, parts);
  for (int64_t frame = share.begin; frame < share.end; frame++) {
    double re[PK_LONGEST_FRAME / 2 + 1] = {0}, im[PK_LONGEST_FRAME / 2 + 1] = {0};
    const int64_t start = frame * m->hop - half;
    for (int64_t n = 0; n <= half; n++) {
      const double a = sample(m, start + n), b = n > 0 && n < half ? sample(m, start + m->size - n) : 0;
      const double sum = a + b, difference = a - b;
      if (sum == 0 && difference == 0) continue;
      const double *c = m->cosines + n * waves, *s = m->sines + n * waves;
      for (int64_t k = 0; k < waves; k++) re[k] += sum * c[k], im[k] += difference * s[k];
    }
    for (int64_t k = 0; k < waves; k++) re[k] = re[k] * re[k] + im[k] * im[k];
    for (int64_t bin = 0; bin < m->bins; bin++) {
      double power = 0;
      for (int64_t k = 0; k < waves; k++) power += m->filters[bin * waves + k] * re[k];
      out[bin * frames + frame] = (float)log10(power > 1e-10 ? power : 1e-10);
    }
  }
}
