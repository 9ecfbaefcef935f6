# The kernel sets: the only place with instruction set flags.
#
# nola_add_kernel_sets(<target>) compiles src/kernels/<isa>.cpp once per instruction set that the
# target processor family can have, links the objects into <target>, and defines NOLA_HAVE_<ISA>
# where the dispatcher is compiled: a promise that the set is linked in, not that it can run.

include(CheckCXXSourceCompiles)

# By what the compiler makes, not by CMAKE_SYSTEM_PROCESSOR, which is the kernel's word: a 32-bit
# system may run on a 64-bit kernel.
check_cxx_source_compiles("int main() { return 0; }
#ifndef __x86_64__
#error
#endif
" NOLA_TARGETS_X86_64)
check_cxx_source_compiles("int main() { return 0; }
#ifndef __aarch64__
#error
#endif
" NOLA_TARGETS_AARCH64)

set(NOLA_ISA_FLAGS_portable "")
set(NOLA_ISA_FLAGS_neon "")
set(NOLA_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(NOLA_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c)

set(NOLA_ISAS portable)
if(NOLA_TARGETS_X86_64)
  list(APPEND NOLA_ISAS avx2 avx512)
elseif(NOLA_TARGETS_AARCH64)
  list(APPEND NOLA_ISAS neon)
endif()

function(nola_add_kernel_sets target)
  foreach(isa IN LISTS NOLA_ISAS)
    add_library(nola_kernels_${isa} OBJECT cpp/src/kernels/${isa}.cpp)
    set_target_properties(nola_kernels_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_compile_features(nola_kernels_${isa} PRIVATE cxx_std_17)
    target_include_directories(nola_kernels_${isa} PRIVATE cpp/src)
    target_compile_options(nola_kernels_${isa} PRIVATE ${NOLA_ISA_FLAGS_${isa}} -fno-exceptions)
    target_link_libraries(nola_kernels_${isa} PRIVATE nola_floating_point nola_warnings)
    if(isa STREQUAL "avx512" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # GCC's own header initialises a register with itself (GCC bug 105593).
      target_compile_options(nola_kernels_${isa} PRIVATE -Wno-uninitialized
                                                         -Wno-maybe-uninitialized)
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:nola_kernels_${isa}>)
    string(TOUPPER ${isa} isa_upper)
    target_compile_definitions(${target} PRIVATE NOLA_HAVE_${isa_upper})
  endforeach()
endfunction()
