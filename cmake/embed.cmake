# Writes OUT, C++ that holds the files FILES (names in FOLDER, separated by commas) as texts. Run at
# build time: cmake -DOUT=... -DFOLDER=... -DFILES=a,b -P embed.cmake
string(REPLACE "," ";" names "${FILES}")
set(entries "")
foreach(name IN LISTS names)
  file(READ "${FOLDER}/${name}" text)
  string(FIND "${text}" ")embedded\"" clash)
  if(NOT clash EQUAL -1)
    message(FATAL_ERROR "${name}: expected no )embedded\" in it")
  endif()
  string(APPEND entries "    {\"${name}\", R\"embedded(${text})embedded\"},\n")
endforeach()
file(WRITE "${OUT}" "// Made by cmake/embed.cmake.
#include \"server/page_files.h\"

namespace drover {
namespace {

constexpr PageFile kFiles[] = {
${entries}};

}  // namespace

std::span<const PageFile> page_files() { return kFiles; }

}  // namespace drover
")
