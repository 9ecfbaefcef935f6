# What `cmake --install` gives to a C++ program: headers, the library, find_package(nola_edge).
include(CMakePackageConfigHelpers)

install(
  DIRECTORY cpp/include/nola
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  PATTERN cuda EXCLUDE)
install(TARGETS nola_edge EXPORT nola_edge_targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES cpp/include/nola.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS nola_c nola_c_static EXPORT nola_edge_c_targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(
  EXPORT nola_edge_c_targets
  NAMESPACE nola_edge::
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/nola_edge)
string(REPLACE ";" " " NOLA_C_PRIVATE_LIBS "${NOLA_C_STATIC_LIBS}")
# From where the file lies, so that an installation may be moved.
file(RELATIVE_PATH NOLA_PREFIX_FROM_PKGCONFIG
     ${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/nola.pc.in nola.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/nola.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
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

# Their licences go with every copy of what is compiled into the C libraries.
foreach(library libdeflate/COPYING rhash/COPYING yyjson/LICENSE)
  get_filename_component(name ${library} DIRECTORY)
  install(FILES third_party/${library} DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/nola-edge
          RENAME ${name}.txt)
endforeach()
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/nola-edge)
