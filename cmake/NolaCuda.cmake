# The CUDA kernels: whether they are built, and for which devices.
#
# NOLA_CUDA=AUTO, the default with the Python modules, builds them where an NVIDIA GPU is seen and a
# CUDA compiler works, and goes on without them elsewhere, since they take minutes to compile; ON
# insists; OFF never looks. Nothing else depends on them: they end up in a Python module, or for C++
# in a library, of their own. NOLA_CUDA_ARCHITECTURES takes CMake's notation (90, 90-real) or native;
# by default it is machine code for every device from compute capability 7.5 on that the compiler
# knows, and PTX of the newest for those to come.
#
# Sets NOLA_CUDA_FOUND and NOLA_CUDA_TARGETS (what the kernels are built for); defines the target nola_cuda_plan, which is plain C++, and nola_cuda.

# A C++ project that adds this one as a subdirectory has to ask for another language in it.
if(NOLA_PYTHON)
  set(_nola_default AUTO)
else()
  set(_nola_default OFF)
endif()
set(NOLA_CUDA ${_nola_default} CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE NOLA_CUDA PROPERTY STRINGS AUTO ON OFF)
# NVIDIA's driver on Linux; the same under Windows' WSL; two generations of Jetson.
set(NOLA_GPU_DEVICES /dev/nvidiactl /dev/dxg /dev/nvhost-gpu /dev/nvgpu
    CACHE STRING "Files of which one is there where AUTO may expect a GPU")
mark_as_advanced(NOLA_GPU_DEVICES)
set(NOLA_CUDA_ARCHITECTURES "" CACHE STRING "CUDA architectures; empty: all from 7.5 on, and PTX")

string(TOUPPER "${NOLA_CUDA}" _nola_cuda)
if(NOT _nola_cuda MATCHES "^(AUTO|ON|OFF|TRUE|FALSE|1|0)$")
  message(FATAL_ERROR "NOLA_CUDA is ${NOLA_CUDA}; use AUTO, ON or OFF")
endif()

add_library(nola_cuda_plan STATIC EXCLUDE_FROM_ALL cpp/src/cuda/plan.cpp)
set_target_properties(nola_cuda_plan PROPERTIES POSITION_INDEPENDENT_CODE ON)
target_include_directories(nola_cuda_plan PRIVATE cpp/src)
target_link_libraries(
  nola_cuda_plan
  PUBLIC nola_edge
  PRIVATE $<BUILD_INTERFACE:nola_floating_point> $<BUILD_INTERFACE:nola_warnings>)

set(_nola_gpu_seen OFF)
foreach(_nola_device IN LISTS NOLA_GPU_DEVICES)
  if(EXISTS ${_nola_device})
    set(_nola_gpu_seen ON)
  endif()
endforeach()

set(NOLA_CUDA_FOUND OFF)
if(_nola_cuda STREQUAL "AUTO" AND NOT CMAKE_CROSSCOMPILING AND NOT _nola_gpu_seen)
  message(STATUS "nola-edge: no NVIDIA GPU is seen, building without CUDA kernels; "
                 "NOLA_CUDA=ON builds them")
elseif(_nola_cuda MATCHES "^(ON|TRUE|1)$" OR (_nola_cuda STREQUAL "AUTO" AND NOT CMAKE_CROSSCOMPILING))
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # one may have been installed since
    # Where an installation of CUDA lies that did not change the PATH.
    find_program(
      _nola_nvcc nvcc NO_CACHE
      HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
      PATH_SUFFIXES bin)
    if(_nola_nvcc AND NOT DEFINED ENV{CUDACXX})
      set(ENV{CUDACXX} ${_nola_nvcc})
    endif()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(NOLA_CUDA_FOUND ON)
  elseif(_nola_cuda STREQUAL "AUTO")
    message(STATUS "nola-edge: no working CUDA compiler, building without CUDA kernels; "
                   "put nvcc on the PATH or set CUDACXX to build them")
  else()
    message(FATAL_ERROR "NOLA_CUDA is ON, and no working CUDA compiler was found; put nvcc on the "
                        "PATH or set CUDACXX, or use NOLA_CUDA=OFF")
  endif()
endif()

if(NOLA_CUDA_FOUND)
  enable_language(CUDA)
  find_package(CUDAToolkit QUIET)
  set(_nola_problem "")
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.8)
    # The first that knows compute capability 9.0, and grid constants.
    set(_nola_problem "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than 11.8")
  elseif(NOT TARGET CUDA::cudart_static)
    set(_nola_problem "the CUDA toolkit of ${CMAKE_CUDA_COMPILER} was not found")
  endif()
  if(_nola_problem AND _nola_cuda STREQUAL "AUTO")
    message(STATUS "nola-edge: ${_nola_problem}, building without CUDA kernels")
    set(NOLA_CUDA_FOUND OFF)
  elseif(_nola_problem)
    message(FATAL_ERROR "nola-edge: ${_nola_problem}")
  endif()
endif()
if(NOT NOLA_CUDA_FOUND)
  return()
endif()

function(nola_known_architectures result)
  execute_process(
    COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code
    OUTPUT_VARIABLE listed COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "sm_[0-9]+" listed "${listed}")
  string(REPLACE "sm_" "" numbers "${listed}")
  list(REMOVE_DUPLICATES numbers)
  list(SORT numbers COMPARE NATURAL)
  set(known "")
  foreach(number IN LISTS numbers)
    if(number GREATER_EQUAL 75)
      list(APPEND known ${number}-real)
      set(newest ${number})
    endif()
  endforeach()
  set(${result} ${known} ${newest}-virtual PARENT_SCOPE)
endfunction()

if(NOLA_CUDA_ARCHITECTURES STREQUAL "native")
  set(NOLA_CUDA_TARGETS ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
  if(NOT NOLA_CUDA_TARGETS MATCHES "^[0-9]")
    message(FATAL_ERROR "NOLA_CUDA_ARCHITECTURES is native, and no CUDA device was found here (it "
                        "takes CMake 3.24, too); name the architecture instead, such as 90")
  endif()
elseif(NOLA_CUDA_ARCHITECTURES)
  foreach(_nola_one IN LISTS NOLA_CUDA_ARCHITECTURES)
    string(REGEX MATCH "^[0-9]+" _nola_number "${_nola_one}")
    if(NOT _nola_one MATCHES "^[0-9]+[a-z]?(-real|-virtual)?$" OR _nola_number LESS 75)
      message(FATAL_ERROR "NOLA_CUDA_ARCHITECTURES: ${_nola_one} is not an architecture from 75 on; "
                          "use numbers such as 90 or 90-real, or native, or leave it empty for all")
    endif()
  endforeach()
  set(NOLA_CUDA_TARGETS ${NOLA_CUDA_ARCHITECTURES})
else()
  nola_known_architectures(NOLA_CUDA_TARGETS)
endif()
message(STATUS "nola-edge: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${NOLA_CUDA_TARGETS}")

add_library(nola_cuda STATIC cpp/src/cuda/expand.cu cpp/src/cuda/merge.cu
                             cpp/src/cuda/project.cu)
set_target_properties(
  nola_cuda PROPERTIES CUDA_ARCHITECTURES "${NOLA_CUDA_TARGETS}" CUDA_STANDARD 17
                       CUDA_STANDARD_REQUIRED ON POSITION_INDEPENDENT_CODE ON)
target_include_directories(nola_cuda PRIVATE cpp/src)
target_link_libraries(
  nola_cuda
  PUBLIC nola_cuda_plan nola_edge CUDA::cudart_static
  PRIVATE $<BUILD_INTERFACE:nola_floating_point> $<BUILD_INTERFACE:nola_warnings>)
add_library(nola_edge::nola_cuda ALIAS nola_cuda)
