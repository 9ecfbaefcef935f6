/* Merges an adapter's coefficients for one module into an array, and prints what came out.
 *
 *   cc -std=c99 merge_array.c $(pkg-config --cflags --libs nola) -o merge_array
 */
#include <nola.h>
#include <stdio.h>
#include <stdlib.h>

enum { OUTPUTS = 256, INPUTS = 512, RANK = 8, BASIS = 64 };

static const char module[] = "model.layers.0.self_attn.q_proj";

static void check(nola_status status) {
    if (status != NOLA_OK) {
        fprintf(stderr, "nola: %s\n", nola_last_error());
        exit(1);
    }
}

/* All rows and columns of a factor of the module. */
static nola_matrix factor(nola_factor name, uint64_t rows, uint64_t cols) {
    nola_matrix matrix = {0};
    matrix.seed = 42;
    matrix.num_basis = BASIS;
    matrix.rows = matrix.row_end = rows;
    matrix.cols = matrix.col_end = cols;
    matrix.basis = NOLA_RADEMACHER;
    check(nola_stream_id(module, name, &matrix.stream));
    return matrix;
}

int main(void) {
    static float alpha[BASIS], beta[BASIS];
    static float a[RANK * INPUTS], b[OUTPUTS * RANK], weight[OUTPUTS * INPUTS];
    const nola_matrix matrix_a = factor(NOLA_FACTOR_A, RANK, INPUTS);
    const nola_matrix matrix_b = factor(NOLA_FACTOR_B, OUTPUTS, RANK);
    nola_update update = {0};
    nola_weight place = {0};
    const char* isa = NULL;
    int i;

    /* The whole adapter for this module: a seed and 2 x 64 coefficients. */
    for (i = 0; i < BASIS; ++i) {
        alpha[i] = 0.01F * (float)i;
        beta[i] = 0.01F * (float)(BASIS - i);
    }
    for (i = 0; i < OUTPUTS * INPUTS; ++i) {
        weight[i] = 1.0F;
    }

    check(nola_expand(&matrix_a, alpha, a, 0));
    check(nola_expand(&matrix_b, beta, b, 0));
    update.b = b;
    update.a = a;
    update.rank = RANK;
    update.scaling = 2.0;
    place.base = place.out = weight;
    place.rows = OUTPUTS;
    place.cols = place.base_stride = place.out_stride = INPUTS;
    place.type = NOLA_FLOAT32;
    check(nola_merge(&place, &update, 0));

    check(nola_isa(&isa));
    printf("%s: first merged weights %a %a %a\n", isa, (double)weight[0], (double)weight[1],
           (double)weight[2]);
    return 0;
}
