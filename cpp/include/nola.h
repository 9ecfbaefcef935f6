/* nola-edge for C, and for every language that calls C: packed adapters; expand, project, merge
 * and quantise, with the same bits on every machine. What the random matrices are is written in
 * docs/basis-v1.md.
 *
 * Every function that can fail returns NOLA_OK or what went wrong, and writes nothing if an
 * argument is refused; nola_last_error() then says in one line which argument it was, or what is
 * wrong with a file. No exception leaves, no state is global but the instruction set, and every
 * function may be called from several threads at once, as long as they do not write to the same
 * memory.
 *
 * Sizes are counts of elements unless they say bytes. A count of threads of 0, or below, takes as
 * many as OpenMP would: the processors, or OMP_NUM_THREADS; the result does not depend on it.
 */
#ifndef NOLA_H
#define NOLA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NOLA_VERSION_MAJOR 0
#define NOLA_VERSION_MINOR 1
#define NOLA_VERSION_PATCH 0
#define NOLA_VERSION "0.1.0"
/* Changes whenever a program that was compiled with an older header would have to be compiled
 * again; compare it with nola_abi_version(). */
#define NOLA_ABI_VERSION 1

/* Types of one size on every machine, whose values are the constants after them. */
typedef int32_t nola_status;
enum {
    NOLA_OK = 0,
    NOLA_INVALID_ARGUMENT = 1, /* refused before anything was written */
    NOLA_NOT_FINITE = 2,       /* an infinite or NaN value; see the function */
    NOLA_OUT_OF_MEMORY = 3,
    NOLA_INTERNAL_ERROR = 4, /* a bug: please report it with nola_last_error() */
    NOLA_INVALID_FILE = 5,   /* it cannot be read, or is not what it claims */
    NOLA_MISMATCH = 6        /* adapter and base do not fit together */
};

typedef int32_t nola_basis;
enum {
    NOLA_RADEMACHER = 0, /* one bit per element: +1 or -1 */
    NOLA_UNIFORM = 1     /* sixteen bits per element */
};

typedef int32_t nola_factor;
enum { NOLA_FACTOR_A = 'A', NOLA_FACTOR_B = 'B' };

typedef int32_t nola_type;
enum { NOLA_FLOAT32 = 0, NOLA_FLOAT16 = 1, NOLA_BFLOAT16 = 2 };

/* ggml's types of blocks of 32 elements, with the bytes of a block. */
typedef int32_t nola_block_type;
enum {
    NOLA_Q4_0 = 0, /* 18 */
    NOLA_Q4_1 = 1, /* 20 */
    NOLA_Q5_0 = 2, /* 22 */
    NOLA_Q5_1 = 3, /* 24 */
    NOLA_Q8_0 = 4  /* 34 */
};
#define NOLA_BLOCK_ELEMENTS 32

/* NOLA_ABI_VERSION and NOLA_VERSION of the library that is in use. */
uint32_t nola_abi_version(void);
const char* nola_version(void);

/* What the last function that failed on this thread has to say: one line in UTF-8, which begins
 * with the name of the argument or the file. Empty if none has failed. Valid until the next one
 * fails. */
const char* nola_last_error(void);

/* The instruction set in use: "portable", "neon", "avx2" or "avx512". The best that the processor
 * has, unless the environment variable NOLA_EDGE_ISA or nola_force_isa() says otherwise. All give
 * the same bits. */
nola_status nola_isa(const char** name);
/* For calls that begin afterwards, on all threads. */
nola_status nola_force_isa(const char* name);

/* The stream of one factor of a module, by the name that the module had in training (UTF-8). */
nola_status nola_stream_id(const char* module, nola_factor factor, uint64_t* stream);

/* A sum of random matrices of rows x cols elements, and the rows and columns [begin, end) of it
 * that are wanted. */
typedef struct nola_matrix {
    uint64_t seed;      /* the adapter's, below 2^63 */
    uint64_t stream;    /* see nola_stream_id */
    uint64_t num_basis; /* how many random matrices: 1 to 2^32 */
    uint64_t rows;      /* of A: the rank; of B: the layer's outputs */
    uint64_t cols;      /* of A: the layer's inputs; of B: the rank */
    uint64_t row_begin;
    uint64_t row_end;
    uint64_t col_begin;
    uint64_t col_end;
    nola_basis basis;
} nola_matrix;

/* The matrix that coefficients stand for, g * sum_i coefficients[i] * basis_i.
 *
 * coefficients: num_basis floats. out: (row_end - row_begin) x (col_end - col_begin) floats, by
 * rows, which must not overlap them. */
nola_status nola_expand(const nola_matrix* matrix, const float* coefficients, float* out,
                        int32_t num_threads);

/* The adjoint, for training: out[i] = g * sum_e grad[e] * basis_i[e].
 *
 * grad: as `out` above; what lies outside counts as zero. out: num_basis floats. */
nola_status nola_project(const nola_matrix* matrix, const float* grad, float* out,
                         int32_t num_threads);

/* A weight of rows x cols elements that is read at `base` and written at `out`, with so many
 * elements from row to row (at least cols). The two places are one, or have no byte in common. */
typedef struct nola_weight {
    const void* base;
    void* out;
    uint64_t rows;
    uint64_t cols;
    uint64_t base_stride;
    uint64_t out_stride;
    nola_type type;
} nola_weight;

/* A low-rank update. b: rows x rank floats, a: rank x cols floats, by rows, neither overlapping
 * `out`; the scaling is rounded to fp32. */
typedef struct nola_update {
    const float* b;
    const float* a;
    uint64_t rank;
    double scaling;
} nola_update;

/* out = base + scaling * b a, accumulated in fp32 and rounded once.
 *
 * NOLA_NOT_FINITE: a factor or the scaling is infinite or NaN, and `out` is as it was; or a merged
 * element is, and `out` holds it. */
nola_status nola_merge(const nola_weight* weight, const nola_update* update, int32_t num_threads);

/* Multiplies values by a factor that is rounded to fp32, in place: how each B of several adapters
 * gets its scaling before their ranks are joined in one update. */
nola_status nola_scale(float* values, uint64_t count, double factor);

/* Values of `count` blocks, 32 floats each. The two must not overlap. */
nola_status nola_dequantize(nola_block_type type, const void* blocks, uint64_t count, float* values,
                            int32_t num_threads);

/* Blocks of values, with the bytes that ggml's reference quantiser gives. A block that holds an
 * infinite value or a NaN is read back as NaN. */
nola_status nola_quantize(nola_block_type type, const float* values, uint64_t count, void* blocks,
                          int32_t num_threads);

/* Blocks of `wanted` that keep its change from `base`, most of which would be less than half a
 * step: it is amplified in each block until as much of it is there as should be. */
nola_status nola_quantize_amplified(nola_block_type type, const float* base, const float* wanted,
                                    uint64_t count, void* blocks, int32_t num_threads);

/* A packed adapter, as nola-edge pack writes it, in memory: what a box merges into the weights that
 * it already has. Never changed once it is open, so that any number of threads may use it. */
typedef struct nola_adapter nola_adapter;

/* Opens a file, checks all of it, and reads its coefficients; nothing stays open. On failure
 * *adapter is null: NOLA_INVALID_FILE says what is wrong with the file. */
nola_status nola_adapter_open(const char* path, nola_adapter** adapter);
/* The same of `size` bytes, which may be gone afterwards. */
nola_status nola_adapter_open_memory(const void* bytes, uint64_t size, nola_adapter** adapter);
/* Frees an adapter and all names that it gave; null is left alone. */
void nola_adapter_close(nola_adapter* adapter);

typedef struct nola_adapter_info {
    uint64_t num_modules;
    uint64_t rank;
    uint64_t num_basis_a;
    uint64_t num_basis_b;
    uint64_t seed;
    double scaling; /* of B A; nola_adapter_merge applies it */
    /* Tensors that were trained as a whole and replace those of the base: nola_adapter_merge does
     * not, so without them the model is not the one that was trained. */
    uint64_t num_whole_tensors;
    uint64_t num_expected; /* see nola_adapter_get_expected */
    nola_basis basis;
    int32_t coefficient_bits; /* 3, 4 or 8; 0 if they are floats */
    int32_t fan_in_fan_out;   /* 1: weights are stored as inputs x outputs, as in GPT-2 */
} nola_adapter_info;
nola_status nola_adapter_get_info(const nola_adapter* adapter, nola_adapter_info* info);

/* A module, with names that are valid until the adapter is closed. */
typedef struct nola_module {
    const char* name;   /* that it had in training */
    const char* tensor; /* of the base's tensor that is its weight: NAME.weight unless recorded;
                           null if it is in several, or has its outputs in another order */
    uint64_t begin;     /* the first output in that tensor, and the one after the last; */
    uint64_t end;       /* 0 and 0: all of it */
} nola_module;
/* index: 0 to num_modules - 1, in the order of the file. */
nola_status nola_adapter_get_module(const nola_adapter* adapter, uint64_t index,
                                    nola_module* module);

/* What its publisher says that merging the adapter into a base gives, alone and as it is
 * (docs/adapter-format.md, "Expected results"); texts are valid until the adapter is closed. */
typedef struct nola_expected {
    const char* name;             /* what the publisher calls the base */
    const char* kind;             /* "folder", "safetensors" or "gguf": the base and the result */
    const char* base_fingerprint; /* 32 hexadecimal digits */
    const char* sha256;           /* 64: of a file; of a folder, of the list of its files' */
} nola_expected;
/* index: 0 to num_expected - 1. */
nola_status nola_adapter_get_expected(const nola_adapter* adapter, uint64_t index,
                                      nola_expected* expected);

/* NOLA_MISMATCH unless the modules have the shapes that they had in training, if the adapter
 * records them. Coefficients would fit any shape and mean nothing: call it once before merging.
 *
 * out_features, in_features: num_modules each, in the modules' order. */
nola_status nola_adapter_check_shapes(const nola_adapter* adapter, const uint64_t* out_features,
                                      const uint64_t* in_features);

/* A part of a module's factor, by rows: of A, which is rank x features (inputs), the columns
 * [begin, end); of B, features (outputs) x rank, the rows. */
nola_status nola_adapter_factor(const nola_adapter* adapter, uint64_t module, nola_factor factor,
                                uint64_t features, uint64_t begin, uint64_t end, float* out,
                                int32_t num_threads);

/* nola_merge of a module's update into its weight, which is outputs x inputs, or inputs x outputs
 * with fan_in_fan_out.
 *
 * head_rows: 0, or the outputs of each attention head where its rotated pairs are side by side, as
 * llama.cpp stores the query and key weights of LLaMA; even, and a divisor of the outputs. */
nola_status nola_adapter_merge(const nola_adapter* adapter, uint64_t module,
                               const nola_weight* weight, uint64_t head_rows, int32_t num_threads);

#ifdef __cplusplus
}
#endif

#endif
