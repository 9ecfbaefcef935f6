set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR i686)
set(CMAKE_C_COMPILER i686-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER i686-linux-gnu-g++)
# As cpp/src/fp_environment.h asks for.
set(CMAKE_CXX_FLAGS_INIT "-msse2 -mfpmath=sse")
# An x86-64 processor runs these programs; what they link to lies in a folder of its own.
set(CMAKE_CROSSCOMPILING_EMULATOR /usr/i686-linux-gnu/lib/ld-linux.so.2 --library-path
                                  /usr/i686-linux-gnu/lib)
