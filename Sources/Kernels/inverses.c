/* Inverses of many small matrices: Gauss–Jordan with pivots, in double. Divisions and short rows, so there is one version for all
 * processors; what makes it fast is that nothing is allocated. */
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "share.h"

/* rows [b, 2b] begins as (x | 1) and ends as (1 | x⁻¹). */
static int32_t invert(const float *x, float *y, int64_t b, double *rows) {
  const int64_t width = 2 * b;
  for (int64_t r = 0; r < b; r++) {
    for (int64_t c = 0; c < b; c++) rows[r * width + c] = (double)x[r * b + c], rows[r * width + b + c] = r == c;
  }
  for (int64_t column = 0; column < b; column++) {
    int64_t pivot = column;
    for (int64_t r = column + 1; r < b; r++) {
      if (fabs(rows[r * width + column]) > fabs(rows[pivot * width + column])) pivot = r;
    }
    if (!(fabs(rows[pivot * width + column]) > 1e-300)) return 0;
    double *own = rows + column * width, *other = rows + pivot * width;
    for (int64_t c = column; c < width; c++) {
      const double value = other[c];
      other[c] = own[c], own[c] = value;
    }
    const double factor = 1 / own[column];
    for (int64_t c = column; c < width; c++) own[c] *= factor;
    for (int64_t r = 0; r < b; r++) {
      double *row = rows + r * width;
      const double share = row[column];
      if (r == column || share == 0) continue;
      for (int64_t c = column; c < width; c++) row[c] -= share * own[c];
    }
  }
  for (int64_t r = 0; r < b; r++) {
    for (int64_t c = 0; c < b; c++) y[r * b + c] = (float)rows[r * width + b + c];
  }
  return 1;
}

int32_t pk_inverses(const float *x, float *y, int64_t n, int64_t b, double *scratch, int32_t part, int32_t parts) {
  const pk_range share = pk_share(n, 1, part, parts);
  for (int64_t i = share.begin; i < share.end; i++) {
    if (!invert(x + i * b * b, y + i * b * b, b, scratch)) return 0;
  }
  return 1;
}
