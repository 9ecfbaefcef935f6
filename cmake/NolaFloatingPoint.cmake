# Floating-point semantics of everything that computes. The specification fixes every rounding, so
# the compiler may neither fuse nor reassociate, and link-time optimisation may not undo that. A
# packager's own flags come first on the command line: -ffast-math and its parts are taken back.
add_library(nola_floating_point INTERFACE)
target_compile_options(
  nola_floating_point
  INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-fno-fast-math;-fno-unsafe-math-optimizations>"
    "$<$<COMPILE_LANGUAGE:CXX>:-fno-associative-math;-fno-reciprocal-math;-fsigned-zeros>"
    "$<$<COMPILE_LANGUAGE:CXX>:-fno-finite-math-only;-fno-lto>"
    $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false -ftz=false -Xcompiler=-ffp-contract=off>)

# Linked with one of these flags, a module brings code that makes the whole process flush subnormal
# numbers as soon as it is loaded. The last of contradicting flags counts (-O2 against -Ofast), and
# only what is linked as a library comes after a packager's LDFLAGS.
set(NOLA_MODULE_LINK_FLAGS
    "$<$<LINK_LANGUAGE:CXX>:-O2;-fno-fast-math;-fno-unsafe-math-optimizations>")
