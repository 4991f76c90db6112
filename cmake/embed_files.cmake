# Writes OUT, C++ that holds files as texts (drover_embed in drover.cmake). FILES are names in FOLDER
# with commas between them.
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
file(WRITE "${OUT}" "#include \"base/embedded.h\"

namespace drover {
namespace {

constexpr EmbeddedFile kFiles[] = {
${entries}};

}  // namespace

std::span<const EmbeddedFile> ${NAME}();
std::span<const EmbeddedFile> ${NAME}() { return kFiles; }

}  // namespace drover
")
