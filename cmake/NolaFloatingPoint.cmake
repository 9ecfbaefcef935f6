# Floating-point semantics of everything that computes. The specification fixes every rounding, so
# the compiler may neither fuse nor reassociate, and link-time optimisation may not undo that.
add_library(nola_floating_point INTERFACE)
target_compile_options(
  nola_floating_point
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -fno-fast-math -fno-lto>
            $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -ftz=false -Xcompiler=-ffp-contract=off>)
