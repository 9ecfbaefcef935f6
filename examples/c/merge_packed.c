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

    index = strtoull(argv[2], NULL, 10);
    check(nola_adapter_get_module(adapter, index, &module));
    weight.rows = strtoull(argv[3], NULL, 10);
    weight.cols = weight.base_stride = weight.out_stride = strtoull(argv[4], NULL, 10);
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
