/* Says what is in a packed adapter, and merges one of its modules into a weight of ones.
 *
 *   cc -std=c99 merge_packed.c $(pkg-config --cflags --libs nola) -o merge_packed
 *   ./merge_packed french.nola 0 576 1536
 */
#include <inttypes.h>
#include <nola.h>
#include <stdio.h>
#include <stdlib.h>

static void check(nola_status status) {
    if (status != NOLA_OK) {
        fprintf(stderr, "merge_packed: %s\n", nola_last_error());
        exit(1);
    }
}

/* Outputs or inputs: so few that a weight's bytes can be counted. */
enum { MOST = 1 << 14 };

static uint64_t number(const char* text, uint64_t most) {
    char* end = NULL;
    const unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || value > most) {
        fprintf(stderr, "merge_packed: %s is not a number up to %" PRIu64 "\n", text, most);
        exit(2);
    }
    return value;
}

int main(int argc, char** argv) {
    nola_adapter* adapter = NULL;
    nola_adapter_info info;
    nola_module module;
    nola_weight weight = {0};
    uint64_t index, i;
    float* values;

    if (argc != 5) {
        fprintf(stderr, "usage: merge_packed ADAPTER MODULE OUTPUTS INPUTS\n");
        return 2;
    }
    check(nola_adapter_open(argv[1], &adapter));
    check(nola_adapter_get_info(adapter, &info));
    printf("rank %" PRIu64 ", scaling %g, %" PRIu64 " modules\n", info.rank, info.scaling,
           info.num_modules);

    if (info.num_whole_tensors > 0) {
        fprintf(stderr,
                "merge_packed: the adapter also replaces tensors, which is not done here\n");
    }
    /* A program that has the whole model also calls nola_adapter_check_shapes, once. */
    index = number(argv[2], info.num_modules - 1);
    check(nola_adapter_get_module(adapter, index, &module));
    weight.rows = number(argv[3], MOST);
    weight.cols = weight.base_stride = weight.out_stride = number(argv[4], MOST);
    if (weight.rows == 0 || weight.cols == 0) {
        fprintf(stderr, "merge_packed: a weight has outputs and inputs\n");
        return 2;
    }
    weight.type = NOLA_FLOAT32;
    values = malloc(weight.rows * weight.cols * sizeof *values);
    if (values == NULL) {
        fprintf(stderr, "merge_packed: there is too little memory\n");
        return 1;
    }
    for (i = 0; i < weight.rows * weight.cols; ++i) {
        values[i] = 1.0F;
    }
    weight.base = weight.out = values;
    check(nola_adapter_merge(adapter, index, &weight, 0, 0));
    printf("%s: %.9g %.9g ... %.9g\n", module.name, values[0], values[1],
           values[weight.rows * weight.cols - 1]);

    free(values);
    nola_adapter_close(adapter);
    return 0;
}
