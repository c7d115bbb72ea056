#include <stdint.h>

/* What we call of LAPACK (Fortran: everything by reference, matrices column by column, 32-bit integers).
 *
 * OpenBLAS is not linked but opened when a decomposition is first asked for: it takes 40 ms to load and starts threads of its
 * own at once, which a guest who only wants to chat shall not have in his process. */

/* A = U·diag(S)·Vᵀ; LAPACK 3.x, divide and conquer. */
typedef void (*peft_sgesdd)(
    const char *job, const int32_t *m, const int32_t *n, float *a, const int32_t *lda, float *s, float *u, const int32_t *ldu, float *vt,
    const int32_t *ldvt, float *work, const int32_t *lwork, int32_t *iwork, int32_t *info);

/* A = Q·R, Q as reflectors. */
typedef void (*peft_sgeqrf)(
    const int32_t *m, const int32_t *n, float *a, const int32_t *lda, float *tau, float *work, const int32_t *lwork, int32_t *info);

/* The first n columns of Q from k reflectors. */
typedef void (*peft_sorgqr)(
    const int32_t *m, const int32_t *n, const int32_t *k, float *a, const int32_t *lda, const float *tau, float *work, const int32_t *lwork,
    int32_t *info);

/* A·X = B for columns of B, which X replaces; A becomes its factors. */
typedef void (*peft_dgesv)(const int32_t *n, const int32_t *columns, double *a, const int32_t *lda, int32_t *pivots, double *b, const int32_t *ldb, int32_t *info);

/* A = Z·diag(w)·Zᵀ of a symmetric A, which Z replaces; w ascending. */
typedef void (*peft_dsyevd)(
    const char *job, const char *half, const int32_t *n, double *a, const int32_t *lda, double *w, double *work, const int32_t *lwork,
    int32_t *iwork, const int32_t *liwork, int32_t *info);

/* OpenBLAS's own: how many threads it takes. */
typedef int (*peft_openblas_get_threads)(void);
typedef void (*peft_openblas_set_threads)(int);
