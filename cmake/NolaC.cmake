# The C interface (nola.h): a shared library that exports nothing else, and a static one.
file(STRINGS cpp/include/nola.h NOLA_ABI_LINE REGEX "define NOLA_ABI_VERSION")
string(REGEX MATCH "[0-9]+" NOLA_ABI_VERSION "${NOLA_ABI_LINE}")

set(NOLA_C_SOURCES cpp/src/c/adapter.cpp cpp/src/c/arguments.cpp cpp/src/c/nola.cpp)
add_library(nola_c SHARED ${NOLA_C_SOURCES})
# All in one: a C program has one library to link.
add_library(nola_c_static STATIC ${NOLA_C_SOURCES} $<TARGET_OBJECTS:nola_edge>)
foreach(isa IN LISTS NOLA_ISAS)
  target_sources(nola_c_static PRIVATE $<TARGET_OBJECTS:nola_kernels_${isa}>)
endforeach()
add_library(nola_edge::c ALIAS nola_c)
add_library(nola_edge::c_static ALIAS nola_c_static)

foreach(target nola_c nola_c_static)
  target_compile_features(${target} PRIVATE cxx_std_17)
  target_include_directories(
    ${target} PUBLIC $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/cpp/include>
                     $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
    PRIVATE cpp)
  target_link_libraries(
    ${target} PRIVATE $<BUILD_INTERFACE:nola_adapters> $<BUILD_INTERFACE:nola_third_party>
                      $<BUILD_INTERFACE:nola_floating_point> $<BUILD_INTERFACE:nola_warnings>)
endforeach()

set_target_properties(
  nola_c PROPERTIES OUTPUT_NAME nola EXPORT_NAME c VERSION ${PROJECT_VERSION}
                    SOVERSION ${NOLA_ABI_VERSION}
                    LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/cpp/src/c/exports.map)
set_target_properties(nola_c_static PROPERTIES OUTPUT_NAME nola EXPORT_NAME c_static
                                               POSITION_INDEPENDENT_CODE ON)
target_link_libraries(nola_c PRIVATE $<BUILD_INTERFACE:nola_edge> ${NOLA_MODULE_LINK_FLAGS})
target_link_options(nola_c PRIVATE
                    -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cpp/src/c/exports.map)
# What a C program, which links without the C++ compiler, needs besides.
set(NOLA_C_STATIC_LIBS -lstdc++ -lm)
if(OpenMP_CXX_FOUND)
  list(APPEND NOLA_C_STATIC_LIBS ${OpenMP_CXX_FLAGS})
else()
  list(APPEND NOLA_C_STATIC_LIBS -pthread)
endif()
target_link_libraries(nola_c_static INTERFACE ${NOLA_C_STATIC_LIBS})
