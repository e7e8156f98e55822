# A text file as a C string: const char gpu_h_text[].  cmake -DIN=file -DOUT=file.c -P embed.cmake
file(READ "${IN}" hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
get_filename_component(name "${IN}" NAME)
string(MAKE_C_IDENTIFIER "${name}" name)
file(WRITE "${OUT}" "extern const char ${name}_text[];\nconst char ${name}_text[] = {${bytes} 0};\n")
