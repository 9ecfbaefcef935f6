# Adapters on disk, read by C++: for the C interface, and for programs without Python.
include(cmake/NolaThirdParty.cmake)

add_library(
  nola_adapters OBJECT
  cpp/adapters/config.cpp cpp/adapters/expected.cpp cpp/adapters/factor_layout.cpp
  cpp/adapters/few_bits.cpp
  cpp/adapters/nola_adapter.cpp cpp/adapters/packed.cpp cpp/adapters/tensor_parts.cpp
  cpp/files/digest.cpp cpp/files/failure.cpp cpp/files/input.cpp cpp/files/json.cpp
  cpp/files/printable.cpp cpp/files/safetensors.cpp
  cpp/files/signature.cpp)
set_target_properties(nola_adapters PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_compile_features(nola_adapters PUBLIC cxx_std_17)
target_include_directories(nola_adapters PUBLIC cpp cpp/include)
target_link_libraries(nola_adapters PUBLIC nola_third_party
                                    PRIVATE nola_floating_point nola_warnings)
# Files of more than 2 GB, where a long has 32 bits.
target_compile_definitions(nola_adapters PUBLIC _FILE_OFFSET_BITS=64)
