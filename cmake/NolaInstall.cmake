# What `cmake --install` gives to a C++ program: headers, the library, find_package(nola_edge).
include(CMakePackageConfigHelpers)

install(
  DIRECTORY cpp/include/nola
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  PATTERN cuda EXCLUDE)
install(TARGETS nola_edge EXPORT nola_edge_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(
  EXPORT nola_edge_targets
  NAMESPACE nola_edge::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nola_edge)

if(NOLA_CUDA_FOUND)
  install(DIRECTORY cpp/include/nola/cuda DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/nola)
  install(TARGETS nola_cuda_plan nola_cuda EXPORT nola_edge_cuda_targets
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(
    EXPORT nola_edge_cuda_targets
    NAMESPACE nola_edge::
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nola_edge)
endif()

configure_package_config_file(
  cmake/nola_edgeConfig.cmake.in nola_edgeConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nola_edge)
write_basic_package_version_file(nola_edgeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/nola_edgeConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/nola_edgeConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nola_edge)
