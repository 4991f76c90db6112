# Helpers that keep each folder's CMakeLists.txt to a list of its files.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# What every file of Drover is compiled with. Products and sums are never contracted behind our
# back: the same source must give the same bits on every instruction set.
add_library(drover_options INTERFACE)
target_compile_options(drover_options INTERFACE -Wall -Wextra -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # It takes the joining of strings for copies onto themselves (GCC bug 105651).
  target_compile_options(drover_options INTERFACE -Wno-restrict)
endif()
if(DROVER_WARNINGS_AS_ERRORS)
  target_compile_options(drover_options INTERFACE -Werror)
endif()
if(DROVER_SANITIZE)
  target_compile_options(drover_options INTERFACE
    -fsanitize=${DROVER_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # What sanitizers put between a write and a read hides the write from it (GCC's manual says so).
    target_compile_options(drover_options INTERFACE -Wno-maybe-uninitialized)
  endif()
  if(DROVER_SANITIZE MATCHES "address")
    # AddressSanitizer stops whoever reads or writes there. Asking twice was a third of the time of
    # compiling plain kernels, and a tenth of that of parsers.
    target_compile_options(drover_options INTERFACE -fno-sanitize=null,object-size)
  endif()
  target_link_options(drover_options INTERFACE -fsanitize=${DROVER_SANITIZE})
endif()
target_include_directories(drover_options INTERFACE ${CMAKE_SOURCE_DIR}/src)

# Under AddressSanitizer a file takes twice as long to compile and a test several times as long to run.
# It is for what meets foreign bytes and for the kernels, so such a build leaves out the programs, and the
# tests that say NO_FOREIGN_BYTES, with whatever only they need. All can be asked for by name.
set(drover_left_out "")
if(DROVER_SANITIZE MATCHES "address")
  set(drover_left_out EXCLUDE_FROM_ALL)
endif()

# drover_library(formats SOURCES a.cpp b.cpp DEPS tensor base LINK Boost::json)
# makes the target drover::formats from files of the current folder, built where something needs it.
function(drover_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;LINK" ${ARGN})
  list(TRANSFORM ARG_DEPS PREPEND drover::)
  add_library(drover_${name} STATIC EXCLUDE_FROM_ALL ${ARG_SOURCES})
  add_library(drover::${name} ALIAS drover_${name})
  target_link_libraries(drover_${name} PUBLIC drover_options ${ARG_DEPS} ${ARG_LINK})
endfunction()

# drover_embed(source openapi_files FOLDER openapi FILES a.json b.json) puts texts into the program:
# ${source} becomes the path of a file of C++ with std::span<const EmbeddedFile> openapi_files()
# (base/embedded.h), made anew when one of the files changes.
function(drover_embed source name)
  cmake_parse_arguments(ARG "" "FOLDER" "FILES" ${ARGN})
  set(folder ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_FOLDER})
  set(out ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  list(JOIN ARG_FILES "," names)
  list(TRANSFORM ARG_FILES PREPEND ${folder}/)
  add_custom_command(OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DOUT=${out} -DNAME=${name} -DFOLDER=${folder} -DFILES=${names}
            -P ${CMAKE_SOURCE_DIR}/cmake/embed_files.cmake
    DEPENDS ${ARG_FILES} ${CMAKE_SOURCE_DIR}/cmake/embed_files.cmake
    VERBATIM)
  set(${source} ${out} PARENT_SCOPE)
endfunction()

# Instruction-set flags belong to the one file that needs them.
function(drover_sse42)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-msse4.2;-mpclmul")
endfunction()
function(drover_avx2)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
endfunction()
function(drover_avxvnni)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-mavxvnni;-mavx2;-mfma;-mf16c")
endfunction()
function(drover_avx512)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS
    "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx2;-mfma;-mf16c")
endfunction()
function(drover_amx)
  set(flags -mamx-tile -mamx-bf16 -mavx512bf16 -mavx512f -mavx512bw -mavx512vl -mavx512dq
    -mavx2 -mfma -mf16c)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${flags}")
endfunction()

# drover_test(gguf SOURCES gguf_test.cpp DEPS formats) makes and registers the test gguf_test.
# Tests run in the source root, so that they find tests/data and ../shared. NO_FOREIGN_BYTES: what it
# tests reads nothing that somebody else may have written, and is no kernel.
function(drover_test name)
  if(NOT DROVER_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "NO_FOREIGN_BYTES" "TIMEOUT" "SOURCES;DEPS;LINK" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  list(TRANSFORM ARG_DEPS PREPEND drover::)
  set(left_out "")
  if(ARG_NO_FOREIGN_BYTES)
    set(left_out ${drover_left_out})
  endif()
  add_executable(${name}_test ${left_out} ${ARG_SOURCES})
  target_include_directories(${name}_test PRIVATE ${CMAKE_SOURCE_DIR})  # for tests/support
  target_link_libraries(${name}_test PRIVATE ${ARG_DEPS} ${ARG_LINK} GTest::gtest_main)
  # Tests are half of what is compiled, and run once: a third of that time was for -O3.
  target_compile_options(${name}_test PRIVATE $<$<CONFIG:Release>:-O1>)
  if(NOT left_out)
    gtest_discover_tests(${name}_test WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
      DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  endif()
endfunction()
