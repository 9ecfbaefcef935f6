# `nola`, one program for machines without Python, and what it is made of.
option(NOLA_STATIC_PROGRAM "Link the program nola to nothing that a machine would have to have" OFF)

# Objects, for the program and for its tests.
add_library(
  nola_merging OBJECT
  cpp/adapters/statistics.cpp
  cpp/files/content_hash.cpp cpp/files/paths.cpp cpp/files/pieces.cpp cpp/files/stop.cpp)
target_include_directories(nola_merging PUBLIC cpp PRIVATE cpp/src)
target_link_libraries(nola_merging PUBLIC nola_adapters nola_edge nola_third_party
                                   PRIVATE nola_floating_point nola_warnings)
if(OpenMP_CXX_FOUND)
  target_link_libraries(nola_merging PRIVATE OpenMP::OpenMP_CXX)
endif()

add_executable(
  nola_program
  cpp/program/adapter.cpp cpp/program/hash.cpp cpp/program/inspect.cpp cpp/program/layout.cpp
  cpp/program/main.cpp cpp/program/options.cpp cpp/program/output.cpp)
set_target_properties(nola_program PROPERTIES OUTPUT_NAME nola)
target_link_libraries(nola_program PRIVATE nola_merging nola_adapters nola_third_party nola_edge
                                           nola_floating_point nola_warnings)
if(NOLA_STATIC_PROGRAM)
  target_link_options(nola_program PRIVATE -static)
endif()
install(TARGETS nola_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
