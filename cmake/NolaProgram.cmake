# `nola`, one program for machines without Python, and what it is made of.
option(NOLA_STATIC_PROGRAM "Link the program nola to nothing that a machine would have to have" OFF)

# Objects, for the program and for its tests.
add_library(
  nola_merging OBJECT
  cpp/adapters/base_fingerprint.cpp cpp/adapters/belongs.cpp cpp/adapters/expanded.cpp
  cpp/adapters/names.cpp cpp/adapters/statistics.cpp
  cpp/export/gguf_lora.cpp cpp/export/lora_alpha.cpp
  cpp/files/checkpoint.cpp cpp/files/content_hash.cpp cpp/files/copying.cpp cpp/files/folder.cpp
  cpp/files/gguf.cpp cpp/files/gguf_cursor.cpp cpp/files/gguf_types.cpp
  cpp/files/output.cpp cpp/files/paths.cpp cpp/files/pieces.cpp cpp/files/publication.cpp
  cpp/files/renaming.cpp cpp/files/stop.cpp cpp/files/temporary.cpp
  cpp/gguf/architectures.cpp cpp/gguf/plan.cpp cpp/gguf/survival.cpp cpp/gguf/targets.cpp
  cpp/gguf/write.cpp
  cpp/merge/earlier_output.cpp cpp/merge/expectation.cpp cpp/merge/factors.cpp
  cpp/merge/matrix.cpp cpp/merge/plan.cpp cpp/merge/weights.cpp cpp/merge/write.cpp)
target_include_directories(nola_merging PUBLIC cpp PRIVATE cpp/src)
target_link_libraries(nola_merging PUBLIC nola_adapters nola_edge nola_third_party
                                   PRIVATE nola_floating_point nola_warnings)
if(OpenMP_CXX_FOUND)
  target_link_libraries(nola_merging PRIVATE OpenMP::OpenMP_CXX)
endif()

add_executable(
  nola_program
  cpp/program/adapter.cpp cpp/program/export_gguf_lora.cpp cpp/program/hash.cpp
  cpp/program/inspect.cpp cpp/program/inspect_summary.cpp cpp/program/layout.cpp
  cpp/program/main.cpp cpp/program/merge.cpp cpp/program/merge_gguf.cpp
  cpp/program/options.cpp cpp/program/output.cpp cpp/program/output_names.cpp)
set_target_properties(nola_program PROPERTIES OUTPUT_NAME nola)
target_link_libraries(nola_program PRIVATE nola_merging nola_adapters nola_third_party nola_edge
                                           nola_floating_point nola_warnings)
if(NOLA_STATIC_PROGRAM)
  # Without what names and debuggers need, which is three quarters of it.
  target_link_options(nola_program PRIVATE -static -Wl,--gc-sections -s)
endif()
install(TARGETS nola_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
