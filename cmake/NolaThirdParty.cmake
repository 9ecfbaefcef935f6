# Other people's libraries (third_party/README.md), compiled without our warnings.
enable_language(C)

set(NOLA_THIRD_PARTY ${CMAKE_CURRENT_SOURCE_DIR}/third_party)
set(NOLA_LIBDEFLATE ${NOLA_THIRD_PARTY}/libdeflate/lib)
set(NOLA_RHASH ${NOLA_THIRD_PARTY}/rhash)

add_library(
  nola_third_party OBJECT
  ${NOLA_THIRD_PARTY}/yyjson/yyjson.c
  ${NOLA_LIBDEFLATE}/adler32.c
  ${NOLA_LIBDEFLATE}/arm/cpu_features.c
  ${NOLA_LIBDEFLATE}/deflate_decompress.c
  ${NOLA_LIBDEFLATE}/utils.c
  ${NOLA_LIBDEFLATE}/x86/cpu_features.c
  ${NOLA_LIBDEFLATE}/zlib_decompress.c
  ${NOLA_RHASH}/blake2b.c
  ${NOLA_RHASH}/byte_order.c
  ${NOLA_RHASH}/sha256.c
  ${NOLA_RHASH}/sha_ni.c)
set_target_properties(nola_third_party PROPERTIES POSITION_INDEPENDENT_CODE ON
                                                  C_VISIBILITY_PRESET hidden)
target_compile_options(nola_third_party PRIVATE -w)
target_compile_definitions(
  nola_third_party
  # What only changes, writes or searches documents.
  PUBLIC YYJSON_DISABLE_UTILS=1 YYJSON_DISABLE_NON_STANDARD=1 YYJSON_DISABLE_INCR_READER=1)
# Of the checksum of a few kilobytes no instruction set makes a difference, and Clang 22 refuses how
# libdeflate 1.23 asks for these.
target_compile_definitions(
  nola_third_party PRIVATE LIBDEFLATE_ASSEMBLER_DOES_NOT_SUPPORT_AVX512VNNI=1
                           LIBDEFLATE_ASSEMBLER_DOES_NOT_SUPPORT_AVX_VNNI=1)
target_include_directories(
  nola_third_party SYSTEM PUBLIC $<BUILD_INTERFACE:${NOLA_THIRD_PARTY}/yyjson>
                                 $<BUILD_INTERFACE:${NOLA_THIRD_PARTY}/libdeflate>
                                 $<BUILD_INTERFACE:${NOLA_RHASH}>)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  # Used only where the processor has it.
  target_compile_definitions(nola_third_party PUBLIC RHASH_SSE4_SHANI=1)
  set_source_files_properties(${NOLA_RHASH}/sha_ni.c PROPERTIES COMPILE_OPTIONS "-msse4.1;-msha")
endif()
