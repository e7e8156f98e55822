# The texts that travel inside the executable, because generated kernels are made of them: <name>_h_text, by scripts/embed.cmake.
# cuda_embed(VAR) sets VAR to the .c files that hold them.
set(CUDA_EMBED_DIR ${CMAKE_CURRENT_LIST_DIR})
function(cuda_embed var)
  set(made "")
  foreach(name gpu flash_params flash_interval flash_common flash_kernel flash_backward flash_mma flash_mma_forward flash_mma_backward)
    set(in ${CUDA_EMBED_DIR}/${name}.h)
    set(out ${CMAKE_CURRENT_BINARY_DIR}/${name}_h.c)
    add_custom_command(OUTPUT ${out}
      COMMAND ${CMAKE_COMMAND} -DIN=${in} -DOUT=${out} -P ${CMAKE_SOURCE_DIR}/scripts/embed.cmake
      DEPENDS ${in} ${CMAKE_SOURCE_DIR}/scripts/embed.cmake)
    list(APPEND made ${out})
  endforeach()
  set(${var} ${made} PARENT_SCOPE)
endfunction()
